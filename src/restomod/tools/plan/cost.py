"""The plan's time and money: FLOPs of each phase, hours, price, communication.

In: a recipe, what it is planned for, and what its rows hold. Out: numbers of each phase, and
sections. On GPUs, hours are FLOPs over MFU x peak x GPUs, all three stated; on a CPU they come from
its measured products (`cpu.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from restomod.config import PhaseConfig, Recipe
from restomod.cpu import measured_peak
from restomod.data.mlm import mask_rate
from restomod.model.flops import attention_flops_per_token, linear_flops_per_token
from restomod.model.memory import FLOAT32, layer_activations, parameters
from restomod.tools.plan import cpu as plan_cpu
from restomod.tools.plan.memory import chosen, strategies
from restomod.tools.plan.packing import Packing
from restomod.tools.plan.parts import Section, Table, Target
from restomod.tools.plan.scaling import REACHED_BANDWIDTH, Cluster, simulate, workload
from restomod.units import duration

RATE_SAMPLES = 64
"""Points of a phase at which a mask rate that changes is taken."""
NETWORK_GBITS = 400
"""Of each GPU's link to other nodes, in each direction."""


@dataclass(frozen=True)
class PhaseCost:
    """What a phase computes, and how long that takes."""

    phase: PhaseConfig
    linear: float
    """Training FLOPs of linear layers per token that is not padding."""
    attention: float
    tokens: float
    """Tokens of the phase that are not padding."""
    seconds: float

    @property
    def flops(self) -> float:
        """Of the whole phase."""
        return (self.linear + self.attention) * self.tokens

    @property
    def step_s(self) -> float:
        """Seconds of a step with the full batch."""
        return self.seconds * self.phase.batch_slots / self.phase.total_slots


def phase_cost(
    recipe: Recipe, phase: PhaseConfig, vocab_size: int, packing: Packing, target: Target
) -> PhaseCost:
    """Count a phase's FLOPs as metrics.jsonl's `mfu` does, and its seconds."""
    causal = phase.objective == "clm"
    slots = sum(packing.chunks)
    predicted = predicted_share(phase, packing)
    linear = linear_flops_per_token(recipe.model, vocab_size, predicted)
    attention = attention_flops_per_token(recipe.model, packing.chunks, causal)
    tokens = phase.total_slots * packing.efficiency
    cost = PhaseCost(phase, linear, attention, tokens, 0.0)
    gpu = target.gpu
    if gpu:
        return replace(cost, seconds=cost.flops / (target.mfu * gpu.flops * target.ranks))
    assert slots
    step_s = _cpu_step_s(recipe, cost, vocab_size, predicted, target)
    return replace(cost, seconds=step_s * phase.total_slots / phase.batch_slots)


def predicted_share(phase: PhaseConfig, packing: Packing) -> float:
    """Return the share of tokens that are predicted, in the mean of the phase."""
    slots = sum(packing.chunks)
    if phase.objective == "clm":
        return 1 - len(packing.chunks) / slots
    places = [phase.total_slots * (2 * n + 1) // (2 * RATE_SAMPLES) for n in range(RATE_SAMPLES)]
    rate = sum(mask_rate(phase.mask, place) for place in places) / RATE_SAMPLES
    return rate * (1 - packing.special / slots)


def _cpu_step_s(
    recipe: Recipe, cost: PhaseCost, vocab_size: int, predicted: float, target: Target
) -> float:
    """Return the seconds of a full batch on this machine's CPU, which a node's ranks share."""
    phase, model = cost.phase, recipe.model
    slots = phase.batch_slots / target.ranks
    every = recipe.compute.recompute_every
    again = 1 + (1 / (3 * every) if every else 0.0)  # another forward pass of some layers
    kept = sum(layer_activations(model, 1, FLOAT32, "input")[:2]) * model.layers
    micro_batches = max(1.0, slots / (phase.row_tokens * phase.micro_batch_rows))
    work = plan_cpu.Work(
        linear_flops=again * cost.linear * slots,
        attention_flops=again * cost.attention * slots,
        kept_bytes=again * kept * slots,
        logits=predicted * vocab_size * slots,
        parameters=sum(parameters(model, vocab_size)),
        layers=again * model.layers * micro_batches,
    )
    return plan_cpu.step_seconds(work, measured_peak() / target.node_ranks)


def cost_section(costs: Sequence[PhaseCost], target: Target) -> Section:
    """Return FLOPs, time and money by phase and in all."""
    gpu = target.gpu
    seconds = sum(cost.seconds for cost in costs)
    in_hours = gpu and seconds >= 3600
    time = _hours if in_hours else duration
    rows = []
    for cost in costs:
        phase = cost.phase
        speed = phase.total_slots / cost.seconds
        rows.append(
            [
                phase.name,
                f"{phase.steps:,}",
                f"{phase.batch_slots:,}",
                f"{cost.flops:.3g}",
                f"{cost.step_s:.3g}",
                time(cost.seconds),
                f"{speed / target.ranks:,.0f}",
            ]
        )
    took = "hours" if in_hours else "time"
    head = ["phase", "steps", "slots a step", "FLOPs", "s a step", took, "slots/s of a rank"]
    if len(costs) > 1:
        steps = sum(cost.phase.steps for cost in costs)
        flops = sum(cost.flops for cost in costs)
        rows.append(["all", f"{steps:,}", "", f"{flops:.3g}", "", time(seconds), ""])
    if not gpu:
        return Section(
            "time on this machine's CPU",
            [f"{duration(seconds)} if nothing else runs, estimated from this CPU's products"],
            Table(head, rows),
            notes=[
                f"Estimate: float32 products at {measured_peak() / 1e9:.0f} GFLOP/s, "
                "from what was just measured here; loading, evaluation and exchange between ranks "
                "are not counted"
            ],
        )
    gpu_hours = seconds / 3600 * target.ranks
    digits = 0 if gpu_hours >= 10 else 2
    return Section(
        f"time and cost on {target.ranks} x {target.gpu_name}",
        [
            f"{time(seconds)}{' hours' if in_hours else ''}, {gpu_hours:,.{digits}f} GPU hours, "
            f"${gpu_hours * target.price:,.{digits}f} at ${target.price:.2f} a GPU hour (--price), "
            f"estimated at MFU {target.mfu:g}"
        ],
        Table(head, rows),
        [
            f"Estimate, not measured on a GPU: FLOPs / (MFU {target.mfu:g} x "
            f"{gpu.flops / 1e12:g} TFLOP/s x {target.ranks}); the MFU is assumed (--mfu), the peak "
            "is the data sheet's, dense bf16",
            "evaluation, checkpoints, restarts and compilation are not counted; ModernBERT's own "
            "runs reached 26 to 37 %, counted so (docs/plan.md)",
        ],
    )


def communication_section(
    recipe: Recipe, cost: PhaseCost, vocab_size: int, target: Target
) -> Section | None:
    """Return what communication and the optimizer add to a step of a phase, by strategy; nothing
    for one rank or a CPU."""
    gpu = target.gpu
    if gpu is None or target.ranks == 1:
        return None
    phase = cost.phase
    cluster = Cluster(
        gpus_per_node=target.node_ranks,
        node_link=gpu.link,
        network_link=NETWORK_GBITS * 1e9 / 8,
        memory_bytes_per_s=REACHED_BANDWIDTH * gpu.bandwidth,
    )
    work = workload(
        recipe.run_name,
        recipe.model,
        vocab_size,
        phase.batch_slots,
        phase.micro_batch_rows * phase.row_tokens,
        phase.batch_slots / cost.step_s / target.ranks,
    )
    reduce_bytes = FLOAT32 if recipe.parallel.reduce_dtype == "float32" else 2
    rows = []
    for name, shards in strategies(recipe, target).items():
        shape = replace(cluster, gpus_per_node=shards) if name.startswith("hsdp") else cluster
        step = simulate(name.partition(",")[0], work, target.ranks, shape, reduce_bytes)
        rows.append(
            [
                name + (" *" if chosen(recipe, target, name) else ""),
                f"{step.compute_s * 1e3:,.1f}",
                f"{step.exposed_s * 1e3:,.2f}",
                f"{step.optimizer_s * 1e3:,.2f}",
                f"{step.sent_bytes / 1e6:,.0f}",
                f"{step.efficiency:.1%}",
            ]
        )
    head = ["", "compute, ms", "exposed, ms", "optimizer, ms", "a rank sends, MB", "computing"]
    return Section(
        f"communication in a step of phase {phase.name}",
        table=Table(head, rows),
        notes=[
            f"Estimate from bytes and links: {gpu.link / 1e9:g} GB/s in a node, "
            f"{NETWORK_GBITS} Gb/s of each GPU between nodes, {cluster.reached:.0%} of both "
            "reached; compute at the MFU above, which includes the rest if it was measured so"
        ],
    )


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.3g}"
