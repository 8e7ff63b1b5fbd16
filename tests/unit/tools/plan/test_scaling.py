"""The model of scaling against closed forms."""

import dataclasses

import pytest

from restomod.tools.plan.scaling import (
    BACKWARD,
    Cluster,
    Workload,
    all_reduce_seconds,
    ddp_buckets,
    finish,
    ring_seconds,
    simulate,
)

IDEAL = Cluster(reached=1.0, node_hop_s=0.0, network_hop_s=0.0, launch_s=0.0)
FAST = dataclasses.replace(IDEAL, node_link=1e30, network_link=1e30)
WORK = Workload(
    name="toy",
    layers=4,
    layer_parameters=10_000_000,
    root_parameters=40_000_000,
    embedding_parameters=30_000_000,
    tokens_per_step=1_048_576,
    micro_batch_tokens=16_384,
    tokens_per_s=100_000.0,
)
PARAMETERS = 80_000_000


def test_ring_in_a_node_sends_all_but_a_share():
    assert ring_seconds(8e9, 8, False, IDEAL) == pytest.approx(7e9 / 450e9)
    assert ring_seconds(8e9, 1, False, IDEAL) == 0


def test_ring_over_nodes_goes_at_the_pace_of_all_adapters_of_a_node():
    assert ring_seconds(16e9, 16, False, IDEAL) == pytest.approx(15e9 / 400e9)
    assert ring_seconds(16e9, 16, True, IDEAL) == pytest.approx(15e9 / 50e9)


def test_each_hop_has_its_latency():
    cluster = Cluster(node_hop_s=1.0, network_hop_s=100.0, launch_s=10_000.0)
    # 15 hops among 16 ranks in two nodes, one of them between nodes.
    assert ring_seconds(0, 16, False, cluster) == 10_000 + 100 + 14
    assert ring_seconds(0, 4, True, cluster) == 10_000 + 300
    # A tree: 7 hops in the node, 1 between two nodes, there and back; the ring has 15.
    assert all_reduce_seconds(0, 16, False, cluster) == 10_000 + 2 * (100 + 7)
    assert all_reduce_seconds(0, 128, True, cluster) == 10_000 + 2 * 7 * 100


def test_all_reduce_is_two_rings_where_latency_does_not_matter():
    assert all_reduce_seconds(8e9, 8, False, IDEAL) == pytest.approx(14e9 / 450e9)
    assert all_reduce_seconds(8e9, 1, True, IDEAL) == 0


def test_speed_that_links_reach_scales_the_time():
    half = dataclasses.replace(IDEAL, reached=0.5)
    assert ring_seconds(8e9, 8, False, half) == 2 * ring_seconds(8e9, 8, False, IDEAL)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "hsdp"])
def test_links_without_limits_leave_compute_and_optimizer(strategy):
    step = simulate(strategy, WORK, 64, FAST)
    assert step.micro_batches == 1
    assert step.compute_s == pytest.approx(16_384 / 100_000)
    assert step.exposed_s == pytest.approx(0, abs=1e-12)
    own = {"ddp": 1, "fsdp": 64, "hsdp": 8}[strategy]
    assert step.optimizer_s == pytest.approx(PARAMETERS * 28 / own / FAST.memory_bytes_per_s)
    assert step.seconds == step.compute_s + step.exposed_s + step.optimizer_s
    assert step.efficiency == step.compute_s / step.seconds


def test_gradients_accumulate_where_there_are_more_tokens_than_fit():
    step = simulate("ddp", WORK, 8, IDEAL)
    assert step.micro_batches == 8
    assert step.compute_s == pytest.approx(1_048_576 / 8 / 100_000)
    assert simulate("ddp", WORK, 48, IDEAL).micro_batches == 2  # 21,845 tokens


def test_bytes_of_each_strategy():
    assert simulate("ddp", WORK, 8, IDEAL).sent_bytes == pytest.approx(2 * 7 / 8 * 4 * PARAMETERS)
    # Layers gathered twice in bf16 and the root once in float32, gradients scattered in float32.
    micro = 2 * 2 * 40_000_000 + 4 * 40_000_000 + 4 * PARAMETERS
    assert simulate("fsdp", WORK, 64, IDEAL).sent_bytes == pytest.approx(63 / 64 * micro)
    assert simulate("fsdp", WORK, 16, IDEAL).sent_bytes == pytest.approx(4 * 15 / 16 * micro)
    across = 2 * 7 / 8 * 4 * PARAMETERS / 8
    assert simulate("hsdp", WORK, 64, IDEAL).sent_bytes == pytest.approx(7 / 8 * micro + across)
    halves = simulate("ddp", WORK, 8, IDEAL, reduce_bytes=2)
    assert halves.sent_bytes == pytest.approx(2 * 7 / 8 * 2 * PARAMETERS)


def test_hsdp_in_one_node_is_fsdp():
    assert simulate("hsdp", WORK, 8, Cluster()) == simulate("fsdp", WORK, 8, Cluster())


def test_nothing_is_communicated_by_one_gpu():
    for strategy in ("ddp", "fsdp", "hsdp"):
        step = simulate(strategy, WORK, 1, Cluster())
        assert (step.exposed_s, step.sent_bytes) == (pytest.approx(0, abs=1e-9), 0)


def test_queue_runs_one_job_at_a_time_when_it_is_ready():
    assert finish([0, 1, 10], [3, 1, 2]) == [3, 4, 12]


def test_buckets_hold_all_gradients_and_the_embedding_comes_last():
    buckets = ddp_buckets(WORK, 4)
    assert sum(size for size, _ in buckets) == pytest.approx(4 * PARAMETERS)
    assert buckets[-1] == (4 * 30_000_000, 1.0)
    assert max(size for size, _ in buckets[:-1]) <= 25 * 2**20
    assert [share for _, share in buckets] == sorted(share for _, share in buckets)
    assert len(ddp_buckets(WORK, 2)) == len(buckets)


def test_ddp_exposes_the_embedding_if_the_rest_is_hidden():
    step = simulate("ddp", WORK, 8, IDEAL)
    last_bucket, embedding = (size for size, _ in ddp_buckets(WORK, 4)[-2:])
    expected = 14 / 8 * (last_bucket + embedding) / 450e9
    assert step.exposed_s == pytest.approx(expected)


def test_ddp_exposes_all_but_the_backward_pass_on_slow_links():
    slow = dataclasses.replace(IDEAL, node_link=1e6)
    step = simulate("ddp", WORK, 8, slow)
    backward = BACKWARD * 16_384 / 100_000
    count = len(ddp_buckets(WORK, 4)) - 1
    communication = 14 / 8 * 4 * PARAMETERS / 1e6
    # The link waits for the first bucket only.
    assert step.exposed_s == pytest.approx(communication - backward + backward / count)


def test_fsdp_hides_all_but_its_ends_behind_enough_compute():
    work = dataclasses.replace(WORK, tokens_per_s=100.0)
    step = simulate("fsdp", work, 8, IDEAL)
    layer, root = 10_000_000, 40_000_000
    pace = 450e9 / (7 / 8)
    # Root and the first layer before each pass, the last layer's gradients and the root's after it.
    ends = (root * 4 + 2 * layer * 2 + layer * 4 + root * 4) / pace
    assert step.exposed_s == pytest.approx(8 * ends, rel=1e-3)


def test_fsdp_waits_for_the_links_if_they_are_slower_than_compute():
    work = dataclasses.replace(WORK, tokens_per_s=1e12)
    step = simulate("fsdp", work, 64, IDEAL)
    assert step.exposed_s == pytest.approx(step.sent_bytes / 400e9, rel=1e-3)


def test_hsdp_reduces_over_nodes_in_the_last_micro_batch_only():
    slow = dataclasses.replace(IDEAL, node_link=1e30, network_link=1e6)
    across = 2 * 7 / 8 * 4 * PARAMETERS / 8 / 1e6
    one = simulate("hsdp", WORK, 64, slow)
    several = simulate("hsdp", dataclasses.replace(WORK, micro_batch_tokens=4096), 64, slow)
    assert several.micro_batches == 4
    assert one.exposed_s < across < one.exposed_s + one.compute_s
    assert several.exposed_s < across < several.exposed_s + several.compute_s / 4
