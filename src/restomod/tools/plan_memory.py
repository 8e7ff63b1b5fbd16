"""The plan's memory: what a device needs by part under each strategy, and what fits.

In: a recipe's phase and what it is planned for. Out: a section. The estimate is
`model/memory.py`'s, which tests compare with what PyTorch allocates on a CPU.
"""

from __future__ import annotations

from pathlib import Path

from restomod.config import PhaseConfig, Recipe
from restomod.model.memory import Memory, phase_memory
from restomod.tools.plan_parts import WARNING, Section, Table, Target, gigabytes

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
    found = {"ddp": 1, "fsdp": ranks}
    if 1 < group < ranks and ranks % group == 0:
        found[f"hsdp, {group} ranks"] = group
    return found


def chosen(recipe: Recipe, target: Target, name: str) -> bool:
    """Return whether a strategy of `strategies` is the recipe's."""
    return target.ranks == 1 or name.partition(",")[0] == recipe.parallel.strategy


def memory_section(recipe: Recipe, phase: PhaseConfig, vocab_size: int, target: Target) -> Section:
    """Return memory by part and the largest micro-batch that fits, for each strategy."""
    device = "cuda" if target.gpu or recipe.device == "cuda" else "cpu"
    limit = device_memory(target, device)
    parts = [*Memory.__dataclass_fields__]
    rows, lines = [], []
    for name, shards in strategies(recipe, target).items():
        memory = phase_memory(recipe, phase, vocab_size, device, shards, target.ranks)
        fits = largest_rows(recipe, phase, vocab_size, device, shards, target, limit)
        mark = " *" if chosen(recipe, target, name) and target.ranks > 1 else ""
        rows.append(
            [
                name + mark,
                *(gigabytes(getattr(memory, part)) for part in parts),
                gigabytes(memory.peak),
                _micro_batch(fits, phase) if limit else "-",
            ]
        )
        if limit and not fits and chosen(recipe, target, name):
            lines.append(f"{WARNING}not even one row fits the memory of a rank with {name}")
        elif limit and fits < phase.micro_batch_rows and chosen(recipe, target, name):
            lines.append(
                f"{WARNING}a micro-batch of {phase.micro_batch_rows} rows does not fit with "
                f"{name}; {fits} would"
            )
    kind = "GPU, bf16" if device == "cuda" else "CPU, float32"
    note = (
        f"GB with micro-batches of {phase.micro_batch_rows} rows. Estimate: the tensors that eager "
        "PyTorch keeps; compiled layers need less"
    )
    if limit:
        note += f". What fits: {USED:.0%} of a rank's {limit / 1e9:.0f} GB, and divides its rows"
    else:
        note += ". --gpu NAME says what fits"
    head = ["", *parts, "peak", "largest micro-batch that fits"]
    return Section(
        f"memory of a rank, phase {phase.name} ({kind})",
        lines,
        Table(head, rows),
        [note, *(["*: the recipe's strategy"] if target.ranks > 1 else [])],
    )


def _micro_batch(rows: int, phase: PhaseConfig) -> str:
    return f"{rows:,} x {phase.row_tokens:,} slots" if rows else "none"


def largest_rows(
    recipe: Recipe,
    phase: PhaseConfig,
    vocab_size: int,
    device: str,
    shards: int,
    target: Target,
    limit: float,
) -> int:
    """Return the rows of the largest micro-batch that fits `limit` bytes, among those that divide
    what a rank has of every batch; 0 if none does."""

    def fits(rows: int) -> bool:
        memory = phase_memory(recipe, phase, vocab_size, device, shards, target.ranks, rows)
        return memory.peak <= USED * limit

    batches = phase.batches.distinct
    shares = [rows // target.ranks for rows in batches if rows % target.ranks == 0]
    most = min(shares, default=0)
    divisors = [
        n for n in range(1, most + 1) if all(share % n == 0 for share in shares) and fits(n)
    ]
    return max(divisors, default=0)


def device_memory(target: Target, device: str) -> float:
    """Return the bytes that a rank has: the data sheet's of a GPU, its share of this machine's on a
    CPU; 0 for a GPU that is not named."""
    if target.gpu:
        return target.gpu.memory
    if device == "cuda":
        return 0.0
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    return 1024.0 * total / target.node_ranks
