"""The plan's memory: what a device needs by part under each strategy, and what fits.

In: a recipe's phase and what it is planned for. Out: a section. The estimate is
`model/memory.py`'s, which tests compare with what PyTorch allocates on a CPU.
"""

from __future__ import annotations

from restomod.config import PhaseConfig, Recipe
from restomod.cpu import memory_bytes
from restomod.model.memory import PROCESS_BYTES, Memory, phase_memory, resident
from restomod.tools.plan.parts import WARNING, Section, Table, Target, gigabytes
from restomod.units import counted

USED = 0.9
"""Share of a device's memory that is planned with: the rest is for the CUDA context, NCCL's buffers
and the allocator's fragments."""


def strategies(recipe: Recipe, target: Target) -> dict[str, int]:
    """Return how many ranks share a copy of the model under each strategy that these ranks may
    use; one process has one."""
    ranks, node = target.ranks, target.node_ranks
    if ranks == 1:
        return {"one rank": 1}
    group = recipe.parallel.shard_ranks or node
    if group == ranks:  # of one node
        return {"ddp": 1, "fsdp, hsdp": ranks}
    found = {"ddp": 1, "fsdp": ranks}
    if 1 < group < ranks and ranks % group == 0:
        found[f"hsdp, {group} ranks"] = group
    return found


def chosen(recipe: Recipe, target: Target, name: str) -> bool:
    """Return whether a strategy of `strategies` is the recipe's."""
    return target.ranks == 1 or recipe.parallel.strategy in name


def memory_section(recipe: Recipe, phase: PhaseConfig, vocab_size: int, target: Target) -> Section:
    """Return memory by part and the largest micro-batch that fits, for each strategy."""
    device = "cuda" if target.gpu or recipe.device == "cuda" else "cpu"
    limit = device_memory(target, device)
    parts = [*Memory.__dataclass_fields__]
    rows, lines = [], []
    for name, shards in strategies(recipe, target).items():

        def needed(rows: int, shards: int = shards) -> Memory:
            return phase_memory(recipe, phase, vocab_size, device, shards, target.ranks, rows)

        def fits(memory: Memory) -> bool:
            return resident(memory, device) <= USED * limit

        memory = needed(phase.micro_batch_rows)
        fitting = [n for n in _micro_batches(phase, target) if fits(needed(n))]
        most = max(fitting, default=0)
        dividing = max((n for n in fitting if _divides(n, phase, target)), default=0)
        own = chosen(recipe, target, name)
        rows.append(
            [
                name + (" *" if own and target.ranks > 1 else ""),
                *(gigabytes(getattr(memory, part)) for part in parts),
                gigabytes(memory.peak),
                *([gigabytes(resident(memory, device))] if device == "cpu" else []),
                *((f"{most:,}", f"{dividing:,}") if limit else ("-", "-")),
            ]
        )
        if limit and own and most < phase.micro_batch_rows:
            lines.append(
                f"{WARNING}a micro-batch of {counted(phase.micro_batch_rows, 'row')} does not fit "
                f"with {name}; {most if most else 'shorter rows'} would"
            )
    kind = "GPU, bf16" if device == "cuda" else "CPU, float32"
    notes = [
        f"GB with micro-batches of {phase.micro_batch_rows} x {phase.row_tokens:,} slots. Estimate "
        "from the tensors that eager PyTorch keeps; compiled layers need less",
        f"rows that fit: of a largest micro-batch, in {USED:.0%} of a rank's {limit / 1e9:.0f} GB; "
        "that divide: among those, what divides a rank's rows of every batch"
        if limit
        else "--gpu NAME says what fits",
    ]
    process = ["process"] if device == "cpu" else []
    if process:
        notes.append(
            f"process: with {PROCESS_BYTES / 1e9:g} GB of Python and torch, and freed tensors in "
            "its heap, about as much again as activations"
        )
    if target.ranks > 1:
        notes.append("*: the recipe's strategy")
    return Section(
        f"memory of a rank, phase {phase.name} ({kind})",
        lines,
        Table(["", *parts, "peak", *process, "rows that fit", "that divide"], rows),
        notes,
        phase.name,
    )


def _micro_batches(phase: PhaseConfig, target: Target) -> range:
    """Return the rows that a rank might compute at a time."""
    return range(1, max(phase.micro_batch_rows, phase.batch_rows // target.ranks) + 1)


def _divides(rows: int, phase: PhaseConfig, target: Target) -> bool:
    return all(batch % (rows * target.ranks) == 0 for batch in phase.batches.distinct)


def device_memory(target: Target, device: str) -> float:
    """Return the bytes that a rank has: the data sheet's of a GPU, its share of this machine's on a
    CPU; 0 for a GPU that is not named."""
    if target.gpu:
        return target.gpu.memory
    if device == "cuda":
        return 0.0
    return memory_bytes() / target.node_ranks
