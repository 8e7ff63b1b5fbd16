"""The plan's checkpoints: their size, what their interval costs, and whether a signal leaves time.

In: a recipe, what its phases cost, and the run's metrics.jsonl if there is one. Out: a section, and
a line about stopping.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from restomod.config import Recipe
from restomod.model.memory import FLOAT32, moments_per_parameter, parameters
from restomod.tools.plan.cost import PhaseCost
from restomod.tools.plan.parts import WARNING, Section, Target, gigabytes
from restomod.units import duration, parse_duration, parse_slots

COPY_BYTES_PER_S = 20e9
"""From a GPU to pinned CPU memory over PCIe, while training stands still for a checkpoint."""
LONG_S = 7200.0
"""Between checkpoints."""


def checkpoint_section(
    recipe: Recipe, costs: Sequence[PhaseCost], vocab_size: int, target: Target
) -> Section:
    """Return how large checkpoints are and what their interval costs."""
    size = checkpoint_bytes(recipe, vocab_size)
    rules = recipe.checkpoint
    steps = sum(cost.phase.steps for cost in costs)
    count = steps // rules.every_steps + sum(1 for end in _ends(costs) if end % rules.every_steps)
    between = rules.every_steps * max(cost.step_s for cost in costs)
    kept = min(count, most_kept(recipe))
    others = f" and others by the recipe's rules, {kept:,} at most" if kept > rules.keep else ""
    hours = between / 7200 * target.ranks
    lost = f": {hours:,.1f} GPU hours, ${hours * target.price:,.2f} a time" if target.gpu else ""
    lines = [
        f"{gigabytes(size)} GB each (float32 weights and moments), {count:,} in all; the newest "
        f"{min(count, rules.keep)} stay{others}, {gigabytes(size * kept)} GB",
        f"every {rules.every_steps:,} steps is every {duration(between)}: what a killed run "
        f"repeats at most, half of it in the mean{lost}; written in the background at "
        f"{size / between / 1e6:,.1f} MB/s or more",
    ]
    took = _measured(recipe)
    if took:
        lines.append(f"in this run, training stood still for up to {took:.2f} s to save")
    elif target.gpu:
        shards = recipe.parallel.shards(target.ranks, target.node_ranks)
        stall = size / shards / COPY_BYTES_PER_S
        lines.append(
            f"training stands still while {gigabytes(size / shards)} GB of a rank are copied: "
            f"{stall:.2f} s, {stall / (between + stall):.2%} of the time (estimate, at "
            f"{COPY_BYTES_PER_S / 1e9:g} GB/s to CPU memory)"
        )
    if between > LONG_S:
        lines.append(
            f"{WARNING}{duration(between)} between checkpoints; lower checkpoint.every_steps"
        )
    return Section("checkpoints", lines)


def most_kept(recipe: Recipe) -> int:
    """Return how many checkpoints stay at most, by the rules that `retention.py` keeps."""
    rules, phases = recipe.checkpoint, recipe.trained_phases
    best = len(phases) * max(rules.keep_best, rules.average_best)
    multiple = parse_slots(rules.keep_every)
    slots = sum(phase.total_slots for phase in phases)
    return rules.keep + best + (slots // multiple if multiple else 0)


def checkpoint_bytes(recipe: Recipe, vocab_size: int) -> float:
    """Return the bytes of a checkpoint's weights and moments."""
    count = sum(parameters(recipe.model, vocab_size))
    return FLOAT32 * (1 + moments_per_parameter(recipe, vocab_size)) * count


def grace(recipe: Recipe) -> str:
    """Compare the time that the cluster leaves after a signal with what saving took in this run."""
    took = _logged(recipe, "checkpoint", "seconds")
    grace_s = parse_duration(recipe.faults.grace)
    if not took:
        return f"stopping: {grace_s:g} s are left after a signal; no save was measured yet"
    needed = max(took) + max(_logged(recipe, "train", "step_s")[-200:], default=0.0)
    text = f"a step and a save took up to {needed:.1f} s in this run"
    if needed > grace_s / 2:
        return (
            f"{WARNING}{text}, and {grace_s:g} s are left after a signal (faults.grace): have the "
            "cluster signal earlier, or use more ranks to a checkpoint, or a faster disk"
        )
    return f"stopping: {grace_s:g} s are left after a signal; {text}"


def _measured(recipe: Recipe) -> float:
    return max(_logged(recipe, "checkpoint", "stall_s"), default=0.0)


def _logged(recipe: Recipe, event: str, name: str) -> list[float]:
    """Return a number of every line of an event that the run has logged so far."""
    log = recipe.run_folder / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    found = [
        json.loads(line) for line in lines if f'"event": "{event}"' in line and line.endswith("}")
    ]
    return [line[name] for line in found if line.get(name) is not None]


def _ends(costs: Sequence[PhaseCost]) -> list[int]:
    ends, step = [], 0
    for cost in costs:
        step += cost.phase.steps
        ends.append(step)
    return ends
