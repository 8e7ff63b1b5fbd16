"""Strict loading of a recipe.

In: YAML files and `key=value` overrides. Out: a `Recipe` whose every key, type and combination has
been checked, or a `UserError` that lists what is wrong, with file, line and the nearest valid key.
Imports no torch, so that a mistake is answered in well under two seconds.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from restomod.config import Recipe
from restomod.errors import UserError
from restomod.impossible import impossible
from restomod.strict import escaped, load_strict
from restomod.units import counted


def load_recipe(paths: list[str | Path], overrides: list[str] | None = None) -> Recipe:
    """Read a recipe from YAML files (later ones win) and `key=value` overrides.

    Raises UserError listing every unknown key, wrong type and impossible combination found. What
    depends on the world size is checked by `check_world`, what depends on files by `open_sources`.
    """
    if not paths:
        raise UserError("a recipe is needed: train.py RECIPE.yaml [MORE.yaml ...] [key=value ...]")
    return load_strict(paths, overrides or [], Recipe, impossible)


def check_world(recipe: Recipe, world_size: int, node_ranks: int | None = None) -> None:
    """Raise UserError where the lanes, a phase's batch or the model cannot be shared by
    `world_size` ranks, of which a node runs `node_ranks` (None: all of them)."""
    problems = world_problems(recipe, world_size, node_ranks)
    if problems:
        raise UserError("\n".join(problems))


def world_problems(recipe: Recipe, world_size: int, node_ranks: int | None = None) -> list[str]:
    """Return what `check_world` refuses."""
    problems = []
    shards = recipe.parallel.shards(world_size, node_ranks or world_size)
    if world_size % shards:
        divisors = [n for n in range(2, world_size + 1) if world_size % n == 0]
        problems.append(
            f"parallel.shard_ranks: groups of {shards} ranks do not divide {world_size} ranks; "
            f"use {_either(_nearest(shards, divisors))}"
        )
    if recipe.parallel.strategy == "hsdp" and shards == 1 < world_size:
        problems.append(
            "parallel.strategy: hsdp shares a copy among the ranks of a node, and a node runs one; "
            "set parallel.shard_ranks, or use fsdp or ddp"
        )
    if recipe.data.lanes % world_size:
        divisors = [n for n in range(1, recipe.data.lanes + 1) if recipe.data.lanes % n == 0]
        problems.append(
            f"data.lanes: {recipe.data.lanes} lanes cannot be shared by {world_size} ranks; "
            f"use {_either(_nearest(world_size, divisors))} ranks, or, for a new run, "
            f"{_either(_multiples(recipe.data.lanes, world_size))} lanes"
        )
    for phase in recipe.trained_phases:
        unit = world_size * phase.micro_batch_rows
        ranks = (
            f"{counted(world_size, 'rank')} x {counted(phase.micro_batch_rows, 'row')} of a "
            "micro-batch"
        )
        if phase.batch_rows % unit:
            are = "is" if phase.batch_rows == 1 else "are"
            problems.append(
                f"phases.{phase.name}.batch_rows: {counted(phase.batch_rows, 'row')} {are} not "
                f"divided by {ranks}; use {_either(_multiples(phase.batch_rows, unit))}"
            )
        uneven = [rows for rows in phase.batches.warmup if rows % unit]
        if uneven:
            sizes = ", ".join(map(str, uneven[:3])) + (" ..." if len(uneven) > 3 else "")
            problems.append(
                f"phases.{phase.name}.batch_warmup: its batches of {sizes} rows are not divided by "
                f"{ranks}; the recipe fixes the sizes: use ranks that divide "
                f"{math.gcd(*phase.batches.distinct)} rows (a smaller micro-batch helps), or, for "
                f"a new run, first_rows and increment_rows that are multiples of {unit}"
            )
    return problems


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML."""
    import yaml

    path.write_text(yaml.safe_dump(escaped(dataclasses.asdict(recipe)), sort_keys=False))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: leaf} of a recipe or its plain form; phases are keyed by name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {str(item.get("name", n)): item for n, item in enumerate(value)}
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _multiples(value: int, unit: int) -> list[int]:
    below = value // unit * unit
    return [n for n in (below, below + unit) if n]


def _nearest(value: int, choices: list[int]) -> list[int]:
    below = [n for n in choices if n <= value]
    above = [n for n in choices if n > value]
    return below[-1:] + above[:1]


def _either(values: list[int]) -> str:
    return " or ".join(str(v) for v in values)
