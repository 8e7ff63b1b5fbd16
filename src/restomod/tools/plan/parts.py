"""What a plan is made of: what it is for, its sections of lines and tables, and both as text.

`plan.py` and its fellows fill sections; `as_text` lays them out for a terminal, `page.py` as
HTML.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field

from restomod.errors import UserError
from restomod.gpus import Gpu, gpu_named

WARNING = "warning: "
"""How a line that warns begins."""


@dataclass(frozen=True)
class Target:
    """What a recipe is planned for."""

    ranks: int
    node_ranks: int
    """Of which a node runs so many."""
    gpu_name: str = ""
    """A name of `gpus.GPUS`; empty: the CPU of this machine, which all ranks share."""
    mfu: float = 0.4
    """Share of the GPUs' bf16 peak that training reaches, all in all."""
    price: float = 2.5
    """Dollars for a GPU hour."""
    vocabulary: int = 50_368
    """The model's vocabulary where the recipe's tokenizer is not here; ModernBERT's."""

    @property
    def gpu(self) -> Gpu | None:
        return gpu_named(self.gpu_name) if self.gpu_name else None

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.node_ranks)


def target(arguments: Namespace, usual_node_ranks: int) -> Target:
    """Return what the command line asks a plan for; raises UserError for what cannot be."""
    ranks, gpus = arguments.world_size, arguments.gpus
    if ranks and gpus and ranks != gpus:
        raise UserError(f"--gpus {gpus} and --world-size {ranks}: both are the number of ranks")
    if not 0 < arguments.mfu <= 1:
        raise UserError(f"--mfu {arguments.mfu:g}: a share of the peak, in (0, 1]")
    if not 0 <= arguments.price < math.inf:
        raise UserError(f"--price {arguments.price:g}: dollars for a GPU hour, 0 or more")
    gpu = arguments.gpu or ("h100" if gpus else "")
    if gpu:
        gpu_named(gpu)
    ranks = ranks or gpus or 1
    node_ranks = min(ranks, arguments.ranks_per_node or usual_node_ranks)
    vocabulary = arguments.vocabulary or Target.vocabulary
    return Target(ranks, node_ranks, gpu.lower(), arguments.mfu, arguments.price, vocabulary)


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column is aligned to the left, the others to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Section:
    """A titled part of a plan."""

    title: str
    lines: list[str] = field(default_factory=list)
    table: Table | None = None
    notes: list[str] = field(default_factory=list)
    """What the table takes for granted; below it."""
    phase: str = ""
    """Name of the only phase that it is about, if it is about one."""

    @property
    def warnings(self) -> list[str]:
        """Its warnings, as they read elsewhere."""
        where = f"phase {self.phase}: " if self.phase else ""
        return [
            where + line.removeprefix(WARNING) for line in self.lines if line.startswith(WARNING)
        ]


def as_text(sections: Sequence[Section]) -> str:
    """Lay sections out for a terminal."""
    lines = []
    for section in sections:
        lines.append(section.title)
        lines += [f"  {line}" for line in section.lines]
        if section.table:
            lines += [f"  {line}" for line in table_lines(section.table)]
        lines += [f"  {line}" for line in section.notes]
    return "\n".join(lines) + "\n"


def table_lines(table: Table) -> list[str]:
    """Return a table's lines, columns aligned."""
    rows = [table.head, *table.rows]
    widths = [max(len(row[n]) for row in rows) for n in range(len(table.head))]
    return [
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def gigabytes(size: float) -> str:
    """Write bytes as GB, with enough digits for small models."""
    return f"{size / 1e9:,.2f}" if size >= 1e9 else f"{size / 1e9:.3f}"
