"""What a run begins from: nothing, its own newest checkpoint, or one of another run.

Enters: a recipe and the opened data. Leaves: the checkpoint, if there is one, and the run's
timeline. Called by `builder.py`, on all ranks, and by `restomod inspect`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restomod.config import Recipe
from restomod.data.sources import Sources
from restomod.errors import UserError
from restomod.impossible import FORK
from restomod.timeline import Origin, Timeline
from restomod.train.agreement import Group
from restomod.train.checkpoints.manifest import checkpoint_folder, load_loader_state
from restomod.train.checkpoints.resume import complete, find_checkpoint
from restomod.train.checkpoints.store import open_store
from restomod.train.guards import check_startable, check_unchanged, fingerprint, place


@dataclass
class Start:
    """Where a run goes on from."""

    timeline: Timeline
    folder: Path | None = None
    """The checkpoint; None: the run begins anew."""
    manifest: dict[str, Any] = field(default_factory=dict)
    resumes: bool = False
    """Whether the checkpoint is the run's own."""
    changed: list[str] = field(default_factory=list)
    """Guarded keys that differ from the checkpoint's, as resume.allow or a fork permits."""

    @property
    def step(self) -> int:
        """Steps that are done."""
        return int(self.manifest["step"]) if self.folder else 0

    def loader_state(self) -> dict[str, Any] | None:
        return load_loader_state(self.folder) if self.folder else None


def find_start(recipe: Recipe, sources: Sources, group: Group) -> Start:
    """Return what the recipe's run begins from; raises UserError where it may not.

    A checkpoint that is in the store alone is downloaded. The ranks of `group` all call it.
    """
    own = find_checkpoint(recipe, open_store(recipe.store, recipe.run_name), group)
    if own:
        changed = check_unchanged(own[1], recipe, fingerprint(sources))
        timeline = Timeline(recipe.trained_phases, Origin(**own[1]["origin"]))
        return Start(timeline, *own, resumes=True, changed=changed)
    start = recipe.start
    if start.fork:
        named = FORK.fullmatch(start.fork)
        assert named
        path = checkpoint_folder(Path(named[1]), int(named[2]))
        manifest = complete(path, recipe, group)
        timeline = Timeline(recipe.trained_phases, Origin(**manifest["origin"]))
    elif start.checkpoint:
        path = Path(start.checkpoint)
        manifest = complete(path, recipe, group)
        origin = Origin(manifest["step"], manifest["rows"], manifest["slots"], start.checkpoint)
        timeline = Timeline(recipe.trained_phases, origin)
    else:
        return Start(Timeline(recipe.trained_phases))
    changed = check_startable(manifest, recipe, fingerprint(sources), str(path))
    step = manifest["step"]
    if step > timeline.end_step:
        raise UserError(f"{path}: its step {step} lies behind the recipe's {timeline.end_step}")
    now = place(timeline, step)
    if any(now[key] != manifest[key] for key in ("rows", "slots")):
        raise UserError(
            f"{path}: {manifest['rows']:,} rows and {manifest['slots']:,} slots had been trained "
            f"on in {step} steps, with the recipe's phases it would be {now['rows']:,} and "
            f"{now['slots']:,}; keep slots, rows and batches of the phases before it"
        )
    return Start(timeline, path, manifest, changed=changed)
