"""What the doctor makes of measurements: bad ones are named, good ones pass."""

import dataclasses
import json

import pytest

from restomod.config import Recipe
from restomod.tools.doctor.bandwidth import Network
from restomod.tools.doctor.doctor import Report, judge_nodes
from restomod.tools.doctor.network import (
    check_all_reduce,
    check_clocks,
    check_in_node,
    check_network,
    check_pairs,
    check_ranks,
    check_shared,
)
from restomod.tools.doctor.nodes import (
    check_devices,
    check_folder,
    check_matmul,
    check_memory,
    check_open_files,
    check_recipe,
    check_shared_memory,
    check_simple,
    check_versions,
)
from restomod.tools.doctor.place import Place
from restomod.tools.doctor.probe import Facts, Folder, Needs
from restomod.tools.doctor.verdict import FAILED, OK, WARNING, Check, outliers

GB = 10**9
NEEDS = Needs(
    step_memory=40 * GB,
    checkpoint=2 * GB,
    checkpoints_kept=3,
    gradients=0.6 * GB,
    cache=10 * GB,
    cache_all=100 * GB,
    open_files=300,
    open_files_allowed=512,
)


def gpus(nodes=3, each=2):
    """Facts of healthy H100 ranks."""
    facts = []
    for rank in range(nodes * each):
        place = Place(rank, rank // each, rank % each, each, nodes * each, f"host{rank // each}")
        fact = Facts(place, "cuda", "NVIDIA H100 80GB HBM3", f"GPU-{rank}", each)
        fact.memory_bytes, fact.memory_free_bytes = 85 * GB, 84 * GB
        fact.matmul_flops = 600e12 + rank * 1e12
        fact.versions = {"python": "3.12.1", "torch": "2.13.0", "driver": "570.1"}
        fact.recipe_digest = "abc"
        fact.shm_bytes = fact.shm_free_bytes = 2**30
        fact.open_files = 65_536
        if place.leader:
            fact.run_folder = Folder("/shared/runs", 500 * GB, GB)
            fact.cache_folder = Folder("/disk/cache", 900 * GB, 2 * GB)
            fact.needs = NEEDS
        facts.append(fact)
    return facts


def leaders(facts):
    return [fact for fact in facts if fact.place.leader]


def run_folder(fact):
    return fact.run_folder


def cache_folder(fact):
    return fact.cache_folder


def networks(facts, slow=None, factor=1.0):
    """Bandwidths between the ranks' nodes: 40 GB/s, times `factor` where slow(rank, partner)."""
    found = {}
    for fact in facts:
        place = fact.place
        pairs = {}
        for node in range(place.nodes):
            if node != place.node:
                partner = node * place.ranks_per_node + place.local_rank
                bad = slow is not None and (slow(place.rank, partner) or slow(partner, place.rank))
                pairs[str(partner)] = 40 * GB * (factor if bad else 1.0)
        found[place.rank] = Network({"8388608": 50 * GB, "268435456": 90 * GB}, 300 * GB, pairs)
    return found


def test_all_is_well():
    checks = judge_nodes(gpus(), Recipe())
    assert {check.state for check in checks} == {OK}, checks
    assert {"recipe", "devices", "versions", "matmul", "memory", "run folder", "data"} <= {
        check.name for check in checks
    }


def test_outliers_lie_below_the_median_by_more_than_the_tolerance():
    assert outliers([100, 101, 84, 86, 99], 0.15) == [2]
    assert outliers([100, 100, 10, 10, 100], 0.5) == [2, 3]
    assert outliers([], 0.1) == []


def test_absent_node_is_named_though_nothing_is_known_of_it():
    facts = gpus()
    here = {fact.place.rank: fact.place for fact in facts[:4]}
    check = check_ranks(here, list(here), facts[0].place)
    assert check.state == FAILED
    assert "4 of 6 ranks" in check.measured
    assert "never came: node 2" in check.measured
    assert "node 1" not in check.measured


def test_absent_rank_is_named_with_the_host_of_its_node():
    facts = gpus()
    here = {fact.place.rank: fact.place for fact in facts if fact.place.rank != 3}
    check = check_ranks(here, list(here), facts[0].place)
    assert "never came: rank 3 on node 1 (host1)" in check.measured


def test_rank_that_came_and_fell_silent_is_named():
    facts = gpus()
    here = {fact.place.rank: fact.place for fact in facts}
    check = check_ranks(here, [0, 1, 2, 3], facts[0].place)
    assert check.state == FAILED
    assert "fell silent: node 2 (host2)" in check.measured
    assert check_ranks(here, list(here), facts[0].place).state == OK


def test_node_with_another_version_is_named():
    facts = gpus()
    for fact in facts[2:4]:
        fact.versions["torch"] = "2.12.0"
    check = check_versions(facts)
    assert check.state == FAILED
    assert check.measured == "torch is 2.13.0, but 2.12.0 on node 1 (host1)"


def test_other_driver_is_a_warning():
    facts = gpus()
    facts[5].versions["driver"] = "560.9"
    check = check_versions(facts)
    assert check.state == WARNING
    assert "560.9 on rank 5 on node 2 (host2)" in check.measured


def test_node_with_another_recipe_is_named():
    facts = gpus()
    facts[4].recipe_digest = facts[5].recipe_digest = "other"
    check = check_recipe(facts)
    assert check.state == FAILED
    assert "node 2 (host2)" in check.measured
    facts[0].problems["recipe"] = "no such file"
    assert "no such file on rank 0 on node 0 (host0)" in check_recipe(facts).measured


def test_no_recipe_is_no_check():
    facts = gpus()
    for fact in facts:
        fact.recipe_digest = ""
    assert check_recipe(facts) is None


def test_devices_of_another_kind_are_named():
    facts = gpus()
    facts[4].device_name = facts[5].device_name = "NVIDIA A100-SXM4-80GB"
    check = check_devices(facts)
    assert check.state == WARNING
    assert "A100-SXM4-80GB, 79 GiB on node 2 (host2)" in check.measured
    facts[1].problems["devices"] = "none here"
    assert check_devices(facts).state == FAILED


def test_ranks_that_share_a_gpu_are_named():
    facts = gpus()
    for n, fact in enumerate(facts):
        fact.device_id = f"GPU-{n % 2}"  # as on another node
    assert check_devices(facts).state == OK
    facts[3].device_id = facts[2].device_id
    check = check_devices(facts)
    assert check.state == FAILED
    assert "the same GPU: node 1 (host1)" in check.measured


def test_slow_device_is_named_and_half_speed_fails():
    facts = gpus()
    facts[3].matmul_flops = 450e12
    check = check_matmul(facts)
    assert check.state == WARNING
    assert "450 TFLOP/s on rank 3 on node 1 (host1)" in check.measured
    facts[3].matmul_flops = 200e12
    assert check_matmul(facts).state == FAILED


def test_all_devices_far_below_the_data_sheet_are_a_warning():
    facts = gpus()
    for fact in facts:
        fact.matmul_flops = 300e12
    check = check_matmul(facts)
    assert check.state == WARNING
    assert "the data sheet says 989 TFLOP/s" in check.measured


def test_slow_cpu_is_at_most_a_warning():
    facts = gpus()
    for fact in facts:
        fact.device, fact.matmul_flops = "cpu", 40e9
    facts[2].matmul_flops = 30e9
    assert check_matmul(facts).state == OK
    facts[2].matmul_flops = 10e9
    check = check_matmul(facts)
    assert check.state == WARNING
    assert "10 GFLOP/s on rank 2" in check.measured


def test_memory_that_others_use_or_that_is_too_small_is_named():
    facts = gpus()
    facts[1].memory_free_bytes = 60 * GB
    check = check_memory(facts)
    assert check.state == WARNING
    assert "uses the device already: 60.0 GB on rank 1 on node 0 (host0)" in check.measured
    facts[1].memory_free_bytes = 30 * GB
    assert "less than that: 30.0 GB on rank 1" in check_memory(facts).measured


def test_ranks_of_a_node_share_a_cpus_memory():
    facts = gpus()
    for fact in facts:
        fact.device = "cpu"
    assert check_memory(facts).state == OK  # 84 GB for two ranks of 40
    facts[0].memory_free_bytes = facts[1].memory_free_bytes = 79 * GB
    assert "39.5 GB on node 0 (host0)" in check_memory(facts).measured


def test_folder_that_cannot_be_written_is_named():
    facts = leaders(gpus())
    facts[1].run_folder.problem = "Read-only file system"
    check = check_folder("run folder", facts, run_folder)
    assert check.state == FAILED
    assert "Read-only file system on node 1 (host1)" in check.measured
    facts[2].problems["cache folder"] = "no answer within 60 s"
    check = check_folder("cache folder", facts, cache_folder)
    assert "no answer within 60 s on node 2 (host2)" in check.measured


def test_full_folder_is_named():
    facts = leaders(gpus())
    facts[1].run_folder.free_bytes = GB
    check = check_folder("run folder", facts, run_folder)
    assert check.state == FAILED
    assert "a checkpoint takes 2.0 GB; full: 1.0 GB on node 1 (host1)" in check.measured
    facts[1].run_folder.free_bytes = 7 * GB
    check = check_folder("run folder", facts, run_folder)
    assert check.state == WARNING
    assert "8.0 GB are wanted; less: 7.0 GB on node 1" in check.measured


def test_cache_too_small_for_the_shards_in_use_fails():
    facts = leaders(gpus())
    facts[2].cache_folder.free_bytes = 9 * GB
    check = check_folder("cache folder", facts, cache_folder)
    assert check.state == FAILED
    assert "9.0 GB on node 2 (host2)" in check.measured
    facts[2].cache_folder.free_bytes = 50 * GB
    assert check_folder("cache folder", facts, cache_folder).state == WARNING


def test_slow_disk_is_named():
    facts = leaders(gpus())
    facts[0].cache_folder.write_bytes_per_s = 0.5 * GB
    check = check_folder("cache folder", facts, cache_folder)
    assert check.state == WARNING
    assert "slow: 500 MB/s on node 0 (host0)" in check.measured
    for fact in facts:
        fact.run_folder.write_bytes_per_s = 10e6  # all alike, but 200 s for a checkpoint
    assert check_folder("run folder", facts, run_folder).state == WARNING


def test_run_folder_must_be_shared_or_have_a_store():
    facts = leaders(gpus())
    assert check_shared({2: True, 4: True}, facts, "").state == OK
    check = check_shared({2: True, 4: False}, facts, "")
    assert check.state == FAILED
    assert check.measured == "not there on node 2 (host2)"
    assert check_shared({2: True, 4: False}, facts, "s3://runs").state == OK
    assert check_shared({}, facts[:1], "") is None


def test_small_shared_memory_is_named():
    facts = leaders(gpus())
    facts[1].shm_free_bytes = 64 * 2**20  # docker's default, for two ranks
    check = check_shared_memory(facts)
    assert check.state == WARNING
    assert "64 MiB on node 1 (host1)" in check.measured


def test_low_limit_of_open_files_is_named():
    facts = gpus()
    facts[3].open_files = 600
    check = check_open_files(facts)
    assert check.state == WARNING
    assert "600 on rank 3 on node 1 (host1)" in check.measured
    facts[3].open_files = 512
    assert check_open_files(facts).state == FAILED


def test_unreachable_store_is_named():
    facts = leaders(gpus())
    facts[2].problems["store"] = "s3://runs cannot be listed: refused"
    check = check_simple("store", facts, "fine", "mend it")
    assert (check.state, check.advice) == (FAILED, "mend it")
    assert check.measured == "s3://runs cannot be listed: refused on node 2 (host2)"
    assert check_simple("data", facts, "fine", "mend it") == Check("data", OK, "fine")


def test_clock_that_is_off_is_named_unless_it_may_be_the_round_trip():
    facts = leaders(gpus())
    good = {0: (0.0, 0.0), 2: (0.002, 0.001)}
    assert check_clocks(good | {4: (-0.3, 0.001)}, facts).state == OK
    assert check_clocks(good | {4: (-1.5, 0.6)}, facts).state == OK
    check = check_clocks(good | {4: (-3.0, 0.001)}, facts)
    assert check.state == WARNING
    assert "node 2 (host2): -3.0 s" in check.measured
    assert check_clocks(good | {4: (900.0, 0.001)}, facts).state == FAILED
    assert "node 2 (host2)" in check_clocks(good, facts).measured


def test_slow_node_is_named_by_its_links():
    facts = gpus(nodes=4)
    check = check_pairs(networks(facts, lambda a, b: a in (4, 5), 0.6), facts)
    assert check.state == WARNING
    assert "slow with every partner: 24.00 GB/s at best on node 2 (host2)" in check.measured
    assert check_pairs(networks(facts, lambda a, b: a in (4, 5), 0.3), facts).state == FAILED


def test_slow_adapter_is_named_by_its_rank():
    facts = gpus(nodes=4)
    check = check_pairs(networks(facts, lambda a, b: a == 3, 0.6), facts)
    assert check.measured.endswith("24.00 GB/s at best on rank 3 on node 1 (host1)")


def test_slow_pair_of_fast_nodes_is_named_as_a_pair():
    facts = gpus(nodes=4)
    check = check_pairs(networks(facts, lambda a, b: (a, b) == (1, 5), 0.5), facts)
    assert check.state == WARNING
    assert "slow pairs: node 0 (host0) rank 1 and node 2 (host2) rank 5: 20.00" in check.measured


def test_links_alike_are_fine():
    facts = gpus()
    check = check_pairs(networks(facts), facts)
    assert check.state == OK
    assert check.measured.startswith("median 40.00 GB/s each way")
    one = gpus(nodes=1)
    assert check_pairs(networks(one), one) is None


def test_node_with_slow_links_inside_is_named():
    facts = gpus()
    found = networks(facts)
    assert check_in_node(found, leaders(facts)).state == OK
    found[2].in_node = 190 * GB
    check = check_in_node(found, leaders(facts))
    assert check.state == WARNING
    assert "190.00 GB/s on node 1 (host1)" in check.measured
    found[2].in_node = 20 * GB
    assert check_in_node(found, leaders(facts)).state == FAILED


def test_all_reduce_tells_the_slowest_rank_and_the_time_for_the_gradients():
    facts = gpus(nodes=2, each=1)
    found = networks(facts)
    found[1].all_reduce["268435456"] = 30 * GB
    check = check_all_reduce(found, 0.6 * GB)
    assert "256 MiB at 30.00 GB/s" in check.measured
    assert "600 MB of gradients take 0.02 s" in check.measured
    assert check_all_reduce(found, 0).measured.endswith("GB/s of bus bandwidth")


def test_ranks_that_broke_are_named_before_those_that_waited():
    facts = gpus()
    found = networks(facts)
    assert check_network(found, facts) is None
    found[0].problem, found[0].stuck = "all-reduce did not end within 60 s", True
    assert "did not end within 60 s on rank 0" in check_network(found, facts).measured
    found[5].problem = "forming the process group: no route to host"
    check = check_network(found, facts)
    assert check.state == FAILED
    assert check.measured.endswith("no route to host on rank 5 on node 2 (host2)")
    del found[2], found[3]
    assert "fell silent: node 1 (host1)" in check_network(found, facts).measured


@pytest.mark.parametrize(("state", "code"), [(OK, 0), (WARNING, 0), (FAILED, 2)])
def test_report_says_what_to_do_and_fails_if_something_did(state, code):
    facts = gpus(nodes=1, each=1)
    checks = [Check("disk", OK, "fine", "nothing"), Check("clocks", state, "9 s", "start chrony")]
    report = Report(facts[0].place, checks, facts, {0: Network({"1": 2.0})})
    assert report.code == code
    assert ("-> start chrony" in report.text()) == (state != OK)
    assert "nothing" not in report.text()
    plain = json.loads(report.json())
    assert plain["code"] == code
    assert plain["checks"][1] == dataclasses.asdict(checks[1])
    assert Facts.from_plain(plain["ranks"][0]) == facts[0]
    assert plain["network"]["0"]["all_reduce"] == {"1": 2.0}
