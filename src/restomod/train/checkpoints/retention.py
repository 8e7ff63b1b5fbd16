"""Which of a run's checkpoints stay.

In: what the whole checkpoints' manifests say, the recipe's rules. Out: the steps that stay. The
same rules hold for the run folder and the store. Imports no torch; `saving.py` and
`tools/average.py` call it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from restomod.config import CheckpointConfig
from restomod.units import parse_slots


@dataclass(frozen=True)
class Saved:
    """What retention looks at of a checkpoint."""

    step: int
    slots: int
    """Token slots trained on so far."""
    phase: str
    loss: float | None
    """Held-out loss of `all` at its step or at the last evaluation before; None if there was none,
    or if it is not finite."""


def saved(manifest: dict[str, Any]) -> Saved:
    """Return what retention looks at of a checkpoint with this manifest."""
    evaluation = manifest.get("evaluation") or {}
    loss = evaluation.get("domains", {}).get("all", {}).get("loss")
    finite = loss if loss is not None and math.isfinite(loss) else None
    return Saved(manifest["step"], manifest["slots"], manifest["phase"], finite)


def kept(checkpoints: list[Saved], rules: CheckpointConfig) -> set[int]:
    """Return the steps of the checkpoints that stay.

    These are the newest `keep`; the first at or after each multiple of `keep_every` slots (it was
    the first when it was written, so it is among those that are there); and of each phase the best
    `keep_best` by held-out loss, or `average_best` if that is more.
    """
    ordered = sorted(checkpoints, key=lambda one: one.step)
    stay = {one.step for one in ordered[-rules.keep :]}
    every, multiple = parse_slots(rules.keep_every), 0
    for one in ordered:
        if every and one.slots // every > multiple:
            multiple = one.slots // every
            stay.add(one.step)
    for phase in {one.phase for one in ordered}:
        of_phase = [one for one in ordered if one.phase == phase]
        stay |= set(best(of_phase, max(rules.keep_best, rules.average_best)))
    return stay


def best(checkpoints: list[Saved], count: int) -> list[int]:
    """Return the steps of the `count` checkpoints with the lowest held-out loss, best first; of
    equals the newest."""
    evaluated = [one for one in checkpoints if one.loss is not None]
    evaluated.sort(key=lambda one: (one.loss, -one.step))
    return [one.step for one in evaluated[:count]]
