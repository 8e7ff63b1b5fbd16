"""Whether a run may go on from a checkpoint: which keys are guarded, and what changed.

In: a manifest, a recipe, the opened data. Out: the guarded keys that changed, or a UserError that
names them. Imports no torch. `train/` and `tools/` call it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from pathlib import Path
from typing import Any

from restomod.config import PhaseConfig, Recipe
from restomod.data.sources import Sources
from restomod.errors import UserError
from restomod.recipe import flatten
from restomod.timeline import Origin, Timeline
from restomod.train.checkpoints.manifest import (
    LOADER,
    checkpoint_folder,
    load_loader_state,
    local_steps,
    verify,
)
from restomod.units import parse_slots

FREE_KEYS = (
    "run_name",
    "runs_dir",
    "store",
    "cache_dir",
    "device",
    "deterministic",
    "tokenizer",  # its content is guarded by the fingerprint
    "data.streams.*",  # likewise
    "data.workers",
    "data.shards_open_per_rank",
    "data.cache_limit_gb",
    "data.download_*",
    "data.on_damaged_shard",
    "phases.*.slots",
    "phases.*.micro_batch_rows",
    "compute.*",
    "parallel.*",
    "evaluation.*",
    "callbacks.*",
    "checkpoint.*",
    "logging.*",
    "card.*",
    "resume.*",
    "stop_after",
    "faults.grace",
    "faults.hang_timeout",
    "faults.nonfinite_steps",
    "faults.spikes.max_rollbacks",
    "profile.*",
)
"""Keys that a resumed run may change, GUARDED_KEYS excepted; all others are guarded."""
GUARDED_KEYS = ("phases.*.batch_warmup.slots",)
FIXED_KEYS = ("data.lanes",)
"""Guarded keys that nothing allows to change: a lane's rows are numbered by them."""
SLOTS = (
    *GUARDED_KEYS,
    "phases.*.schedule.warmup",
    "phases.*.schedule.decay",
    "phases.*.mask.later.*.at",
)
"""Guarded numbers of slots: 1M and 1_000_000 are the same."""


def fingerprint(sources: Sources) -> dict[str, str]:
    """Return what identifies the data: hashes of every stream's index and of the tokenizer, and of
    every stream the column that is read and the tokens that its odds are worked out from."""
    identity = {"tokenizer": sources.tokenizer.fingerprint}
    for name, dataset in sources.streams.items():
        key = f"data.streams.{name}"
        identity[key] = dataset.fingerprint
        identity[f"{key}.column"] = dataset.column_name
        identity[f"{key}.tokens"] = str(dataset.attributes.tokens)
        if dataset.transform:
            identity[f"{key}.transform"] = json.dumps(dataset.transform, sort_keys=True)
    return identity


def guarded(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's keys that a resumed run must not change once their phase has begun."""
    return {
        key: parse_slots(value) if _matches(key, SLOTS) else value
        for key, value in flatten(recipe).items()
        if not _matches(key, FREE_KEYS) or _matches(key, GUARDED_KEYS)
    }


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def place(timeline: Timeline, step: int) -> dict[str, Any]:
    """Return what a manifest says of where `step` done steps are: the run's origin, its phases with
    the steps that end them, and the phase of the last step."""
    span = timeline.at(max(step - 1, timeline.origin.step))
    return {
        "phase": span.phase.name,
        "phases": {s.phase.name: s.end_step for s in timeline.spans},
        "rows": span.rows_before(step),
        "slots": span.slots_before(step),
        "origin": dataclasses.asdict(timeline.origin),
    }


def check_unchanged(
    manifest: dict[str, Any], recipe: Recipe, identity: dict[str, str]
) -> list[str]:
    """Return the guarded keys that changed and are allowed to; raise UserError for any other.

    Phases that had not begun may be anything. Those that had ended must end where they did, and the
    one in progress not before the checkpoint; up to there, steps keep their rows and slots.
    """
    begun, problems = _begun_phases(manifest, recipe)
    differences = _differences(manifest, recipe, identity)
    changed = [
        key
        for key in differences
        if not key.startswith("phases.") or any(key.startswith(f"phases.{name}.") for name in begun)
    ]
    refused = [
        key
        for key in changed
        if key in FIXED_KEYS
        or not any(key == allow or key.startswith(allow + ".") for allow in recipe.resume.allow)
    ]
    allowable = not problems and not any(key in FIXED_KEYS for key in refused)
    problems += [
        differences[key] + ("; it is fixed for the life of a run" if key in FIXED_KEYS else "")
        for key in refused
    ]
    if problems:
        ways = "undo the change, or choose another run_name"
        if allowable:
            ways = "undo the change, choose another run_name, or list the key in resume.allow"
        raise UserError(
            f"{recipe.run_folder}: the run cannot go on with another recipe or other data:\n  "
            + "\n  ".join(problems)
            + f"\n{ways}"
        )
    return changed


def check_startable(
    manifest: dict[str, Any], recipe: Recipe, identity: dict[str, str], checkpoint: str
) -> list[str]:
    """Return the guarded keys in which a recipe differs from that of another run's checkpoint, from
    which it starts; raise UserError where model, data or seed are others."""
    differences = _differences(manifest, recipe, identity)
    streams = identity.keys() ^ manifest["fingerprint"].keys()  # that only one of the runs has
    fixed = [
        line
        for key, line in differences.items()
        if key.split(".")[0] in ("model", "data", "seed", "tokenizer") and key not in streams
    ]
    if fixed:
        raise UserError(
            f"{checkpoint}: a run with another model, other data or another seed cannot begin from "
            "it:\n  " + "\n  ".join(fixed) + "\nundo the change; init.weights takes a model's "
            "weights alone"
        )
    return [key for key in differences if not key.startswith("start.")]


def _differences(
    manifest: dict[str, Any], recipe: Recipe, identity: dict[str, str]
) -> dict[str, str]:
    """Return the guarded keys and the data in which a recipe differs from a checkpoint's, in order,
    each with a line that says how."""
    now = {**guarded(recipe), **identity}
    then = _recorded(manifest, recipe, now)
    return {
        key: f"{key}: was {then.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key)
    }


def _recorded(manifest: dict[str, Any], recipe: Recipe, now: dict[str, Any]) -> dict[str, Any]:
    """Return the guarded keys and the data of a checkpoint: a key that there was not when it was
    written had its default."""
    phases = [PhaseConfig(name=phase.name) for phase in recipe.phases]
    defaults = {k: v for k, v in guarded(Recipe(phases=phases)).items() if k in now}
    return {**defaults, **manifest["recipe"], **manifest["fingerprint"]}


def _begun_phases(manifest: dict[str, Any], recipe: Recipe) -> tuple[set[str], list[str]]:
    """Return the phases that had begun at a checkpoint, and what the recipe has against them."""
    step, origin = manifest["step"], Origin(**manifest["origin"])
    spans = Timeline(recipe.trained_phases, origin).spans
    ends = list(manifest["phases"].items())
    firsts = [origin.step, *(end for _, end in ends)]
    begun = [(name, end) for (name, end), first in zip(ends, firsts, strict=False) if first < step]
    problems = []
    for n, (name, end) in enumerate(begun):
        if n >= len(spans) or spans[n].phase.name != name:
            there = spans[n].phase.name if n < len(spans) else "none"
            problems.append(f"phases: the run's phase {n + 1} was {name}, is {there}")
        elif n < len(begun) - 1 and spans[n].end_step != end:
            problems.append(
                f"phases.{name}.slots: it ended at step {end}, now it would at {spans[n].end_step}"
            )
        elif n == len(begun) - 1 and spans[n].end_step < step:
            problems.append(
                f"phases.{name}.slots: it would end at step {spans[n].end_step}, the run has done "
                f"{step}"
            )
    names = [name for name, _ in begun]
    if not problems:
        now = place(Timeline(recipe.trained_phases, origin), step)
        if any(now[key] != manifest[key] for key in ("rows", "slots")):
            problems.append(
                f"phases.{names[-1]}: {step} steps took {manifest['rows']:,} rows and "
                f"{manifest['slots']:,} slots, with this recipe they would have taken "
                f"{now['rows']:,} and {now['slots']:,}; end the phase where it is, by its slots, "
                "and begin another with other batches"
            )
    return set(names), problems


def state_before(
    run_folder: Path, step: int, recipe: Recipe, identity: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the manifest and the loader's state of the run's last checkpoint at or before `step`
    that was written with this recipe and this data; weights are not looked at."""
    now = {**guarded(recipe), **identity}
    for newest in local_steps(run_folder):
        folder = checkpoint_folder(run_folder, newest)
        problem, manifest = verify(folder, only=LOADER)
        if problem or manifest["step"] > step:
            continue
        if _recorded(manifest, recipe, now) == now:
            return manifest, load_loader_state(folder)
    return None
