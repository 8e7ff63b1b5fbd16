"""Step time of data-parallel training on many GPUs, worked out from bytes, links and compute.

Enters: a model's shape and measured speed, a cluster, a strategy. Leaves: seconds and bytes of a
step. `restomod plan` and benchmarks/scaling/ print it; everything here is a pure function of its
arguments.

Collectives are rings over all GPUs that take part, cut into as many as a node has network adapters,
so that each adapter carries one: the slower of the two kinds of link sets the pace, and each hop
adds its latency. An all-reduce may be a tree instead, which moves as much with fewer hops. What
runs at the same time is found by playing the step through: compute is one queue, and
communication another for each kind of link that a strategy keeps apart; whatever is not hidden
behind compute is exposed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from restomod.config import ModelConfig
from restomod.model.memory import BF16, FLOAT32, layer_parameters, parameters

OPTIMIZER_BYTES = 7 * FLOAT32
"""Read and written for each parameter: weight, gradient and two moments; all but the gradient are
written."""
REACHED_BANDWIDTH = 0.8
"""Share of a GPU's memory bandwidth that elementwise kernels reach."""
H100_BANDWIDTH = 3.35e12
"""Bytes/s."""


@dataclass(frozen=True)
class Cluster:
    """Nodes of `gpus_per_node` GPUs; speeds in bytes/s in each direction, latencies in seconds."""

    gpus_per_node: int = 8
    node_link: float = 450e9
    """NVLink of a GPU."""
    network_link: float = 50e9
    """Network adapter of a GPU: 400 Gb/s."""
    reached: float = 0.8
    """Share of a link's nominal speed that large messages reach."""
    node_hop_s: float = 2e-6
    network_hop_s: float = 8e-6
    launch_s: float = 15e-6
    """What each collective takes whatever its size."""
    memory_bytes_per_s: float = REACHED_BANDWIDTH * H100_BANDWIDTH
    """At which the optimizer reads and writes."""


@dataclass(frozen=True)
class Workload:
    """A model and its training step."""

    name: str
    layers: int
    layer_parameters: int
    root_parameters: int
    """Embedding, head and norms outside the layers; the decoder is tied to the embedding."""
    embedding_parameters: int
    tokens_per_step: int
    micro_batch_tokens: int
    """Most tokens that a GPU computes at a time."""
    tokens_per_s: float
    """Of one GPU that communicates with nobody."""

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.layers * self.layer_parameters + self.root_parameters


def workload(
    name: str,
    model: ModelConfig,
    vocab_size: int,
    tokens: int,
    micro_batch_tokens: int,
    speed: float,
) -> Workload:
    """Return a model's sizes as the simulation needs them; `speed` is a lone GPU's tokens/s."""
    total = sum(parameters(model, vocab_size))
    layer = layer_parameters(model)
    return Workload(
        name=name,
        layers=model.layers,
        layer_parameters=layer,
        root_parameters=total - model.layers * layer,
        embedding_parameters=vocab_size * model.hidden_size,
        tokens_per_step=tokens,
        micro_batch_tokens=micro_batch_tokens,
        tokens_per_s=speed,
    )


@dataclass(frozen=True)
class Step:
    """One optimizer step of one rank."""

    micro_batches: int
    compute_s: float
    exposed_s: float
    """Communication that nothing hides."""
    optimizer_s: float
    sent_bytes: float
    """By each rank."""

    @property
    def seconds(self) -> float:
        """All that the step takes."""
        return self.compute_s + self.exposed_s + self.optimizer_s

    @property
    def efficiency(self) -> float:
        """Share of the step that computes the model."""
        return self.compute_s / self.seconds


BACKWARD = 2 / 3
"""Share of a micro-batch's compute: gradients of inputs and of weights, beside one forward pass."""
BUCKET_BYTES = 25 * 2**20
"""DDP's buckets."""


def ring_share(ranks: int) -> float:
    """Return what each rank of a ring sends to gather or to reduce and scatter, as a share of the
    whole: all but its own part."""
    return (ranks - 1) / ranks


def ring_seconds(size: float, ranks: int, across: bool, cluster: Cluster) -> float:
    """Return the time to all-gather, or to reduce-scatter, `size` bytes (the whole) over a ring of
    `ranks`; an all-reduce is both.

    They fill nodes, one after the other; with `across`, they are in the same place of different
    nodes, each with an adapter of its own.
    """
    if ranks == 1:
        return 0.0
    hops, pace = _path(ranks, across, cluster)
    return cluster.launch_s + ring_share(ranks) * size / pace + hops


def all_reduce_seconds(size: float, ranks: int, across: bool, cluster: Cluster) -> float:
    """Return the time to all-reduce `size` bytes: by a ring or a tree, whichever is faster."""
    if ranks == 1:
        return 0.0
    hops, pace = _path(ranks, across, cluster)
    ring = 2 * ring_share(ranks) * size / pace + 2 * hops
    inside = min(ranks, cluster.gpus_per_node) if not across else 1
    depth = math.ceil(math.log2(math.ceil(ranks / inside)))
    tree = 2 * size / pace + 2 * (depth * cluster.network_hop_s + (inside - 1) * cluster.node_hop_s)
    return cluster.launch_s + min(ring, tree)


def _path(ranks: int, across: bool, cluster: Cluster) -> tuple[float, float]:
    """Return (latency of going once around but for the last hop, bytes/s) of a ring."""
    if across:
        return (ranks - 1) * cluster.network_hop_s, cluster.reached * cluster.network_link
    inside = min(ranks, cluster.gpus_per_node)
    nodes = math.ceil(ranks / cluster.gpus_per_node)
    pace = cluster.node_link
    if nodes > 1:
        pace = min(pace, inside * cluster.network_link)
    crossings = nodes - 1
    hops = crossings * cluster.network_hop_s + (ranks - 1 - crossings) * cluster.node_hop_s
    return hops, cluster.reached * pace


def simulate(
    strategy: str,
    work: Workload,
    ranks: int,
    cluster: Cluster,
    reduce_bytes: int = FLOAT32,
    gather_bytes: int = BF16,
) -> Step:
    """Return a step of `ranks` GPUs under ddp, fsdp (one copy over all ranks) or hsdp (one copy in
    each node)."""
    tokens = work.tokens_per_step / ranks
    micro_batches = math.ceil(tokens / work.micro_batch_tokens)
    micro_s = tokens / micro_batches / work.tokens_per_s
    if strategy == "ddp":
        exposed, sent = _ddp(work, ranks, micro_s, cluster, reduce_bytes)
        own = 1
    else:
        own = ranks if strategy == "fsdp" else min(ranks, cluster.gpus_per_node)
        unit = _Shards(work, own, ranks // own, micro_s, cluster, reduce_bytes, gather_bytes)
        exposed = (micro_batches - 1) * unit.exposed(last=False) + unit.exposed(last=True)
        sent = (micro_batches - 1) * unit.sent(last=False) + unit.sent(last=True)
    optimizer_s = work.parameters / own * OPTIMIZER_BYTES / cluster.memory_bytes_per_s
    return Step(micro_batches, micro_batches * micro_s, exposed, optimizer_s, sent)


def ddp_buckets(work: Workload, reduce_bytes: int) -> list[tuple[float, float]]:
    """Return DDP's buckets as (bytes, share of the backward pass after which they are complete), in
    order.

    Gradients of layers come evenly over the pass, from the last layer to the first. The embedding's
    is complete at the very end, for the tied decoder only begins it.
    """
    early = (work.parameters - work.embedding_parameters) * reduce_bytes
    count = math.ceil(early * FLOAT32 / reduce_bytes / BUCKET_BYTES)
    buckets = [(early / count, (n + 1) / count) for n in range(count)]
    return [*buckets, (work.embedding_parameters * reduce_bytes, 1.0)]


def finish(ready: list[float], durations: list[float]) -> list[float]:
    """Return when each job of a queue ends, which starts once it is ready and the one before it has
    ended."""
    ends = []
    begin = 0.0
    for at, duration in zip(ready, durations, strict=True):
        begin = max(begin, at) + duration
        ends.append(begin)
    return ends


def _ddp(
    work: Workload, ranks: int, micro_s: float, cluster: Cluster, reduce_bytes: int
) -> tuple[float, float]:
    """Return (exposed seconds, sent bytes): gradients are reduced in the last backward pass."""
    backward = BACKWARD * micro_s
    buckets = ddp_buckets(work, reduce_bytes)
    ends = finish(
        [share * backward for _, share in buckets],
        [all_reduce_seconds(size, ranks, False, cluster) for size, _ in buckets],
    )
    sent = 2 * ring_share(ranks) * work.parameters * reduce_bytes
    return max(0.0, ends[-1] - backward), sent


@dataclass(frozen=True)
class _Shards:
    """A micro-batch of FSDP2 or HSDP: each layer is gathered for the forward pass and again for the
    backward pass, one layer ahead of compute; the root, in float32, once. Gradients are
    reduce-scattered after every micro-batch, and over the copies after the last."""

    work: Workload
    own: int
    """Ranks that share a copy."""
    copies: int
    micro_s: float
    cluster: Cluster
    reduce_bytes: int
    gather_bytes: int

    def sent(self, last: bool) -> float:
        """Return the bytes that a rank sends."""
        work, share = self.work, ring_share(self.own)
        layers = work.layers * work.layer_parameters
        gathered = 2 * layers * self.gather_bytes + work.root_parameters * FLOAT32
        sent = share * (gathered + work.parameters * self.reduce_bytes)
        if last:
            part = work.parameters * self.reduce_bytes / self.own
            sent += 2 * ring_share(self.copies) * part
        return sent

    def exposed(self, last: bool) -> float:
        """Return the seconds by which the micro-batch takes longer than its compute."""
        work, layers = self.work, self.work.layers
        forward = (1 - BACKWARD) * self.micro_s / layers
        backward = BACKWARD * self.micro_s / layers
        gather = self._ring(work.layer_parameters * self.gather_bytes)
        reduce = self._ring(work.layer_parameters * self.reduce_bytes)
        # When the link is free, when compute is, and when the next gathering may begin: with the
        # compute of the layer before it.
        link = now = may = self._ring(work.root_parameters * FLOAT32)
        for _ in range(layers):
            link = max(link, may) + gather
            may = max(now, link)
            now = may + forward
        may = now
        reduced = []
        for n in range(layers):
            link = max(link, may) + gather
            may = max(now, link)
            if n:  # the layer before is reduced beside the compute of this one
                link = max(link, now) + reduce
                reduced.append(link)
            now = may + backward
        link = max(link, now) + reduce
        reduced.append(link)
        reduced.append(link + self._ring(work.root_parameters * self.reduce_bytes))
        end = reduced[-1]
        if last and self.copies > 1:
            sizes = [work.layer_parameters] * layers + [work.root_parameters]
            across = [self._across(size * self.reduce_bytes / self.own) for size in sizes]
            end = finish(reduced, across)[-1]
        return end - self.micro_s

    def _ring(self, size: float) -> float:
        return ring_seconds(size, self.own, False, self.cluster)

    def _across(self, size: float) -> float:
        return all_reduce_seconds(size, self.copies, True, self.cluster)
