"""`restomod average`: the mean of the weights of several checkpoints.

In: whole checkpoints of a run, in its folder or its store. Out: a folder like a checkpoint's, with
a model alone, which load_model, export and init.weights take. Tensor by tensor: in memory is one
model and one tensor. `train/builder.py` calls it at the end of runs whose recipe asks for it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from restomod.config import Recipe
from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.train.checkpoints.loading import StateReader, load_state
from restomod.train.checkpoints.manifest import (
    FORMAT,
    MANIFEST,
    MODEL,
    STATE,
    checkpoint_folder,
    describe_file,
    local_steps,
    read_manifest,
    verify,
    write_durably,
)
from restomod.train.checkpoints.retention import Saved, best, saved
from restomod.train.checkpoints.saving import disk_errors, save_state
from restomod.train.checkpoints.store import Store, open_store

log = logging.getLogger(__name__)

AVERAGED = "averaged"


def average_run(run: Path, recipe: Recipe, out: Path, *, last: int = 0, best_count: int = 0) -> str:
    """Average the newest `last` checkpoints of a run, or the `best_count` of the last phase with
    the lowest held-out loss, into `out`; return what was done, as text.

    Raises UserError if there are fewer.
    """
    store = open_store(recipe.store, recipe.run_name)
    there = _checkpoints(run, store)
    asked = last or best_count
    steps = [one.step for one in there[-last:]] if last else _best(there, best_count)
    if len(steps) < asked:
        which = "" if last else " with a held-out loss in the last phase"
        raise UserError(
            f"{run}: {asked} checkpoints are to be averaged, {len(steps)} are there{which}; "
            "checkpoint.keep and checkpoint.keep_best say how many a run keeps"
        )
    return _average_steps(run, store, sorted(steps), out)


def average_at_end(run: Path, recipe: Recipe) -> str:
    """Average what `checkpoint.average_best` asks for: the last checkpoint and the best others of
    its phase; return what was done, as text."""
    store = open_store(recipe.store, recipe.run_name)
    there = _checkpoints(run, store)
    steps = [there[-1].step, *_best(there[:-1], recipe.checkpoint.average_best, there[-1].phase)]
    return _average_steps(run, store, sorted(steps), run / AVERAGED)


def _checkpoints(run: Path, store: Store | None) -> list[Saved]:
    """Return the checkpoints that count, in the run's folder or store, in order."""
    found = {}
    for step in local_steps(run):
        path = checkpoint_folder(run, step) / MANIFEST
        if path.is_file():
            found[step] = read_manifest(path.read_bytes())
    for step in store.steps() if store else []:
        found.setdefault(step, store.manifest(step))  # type: ignore[union-attr]
    there = [saved(manifest) for problem, manifest in found.values() if not problem]
    if not there:
        raise UserError(f"{run}: holds no whole checkpoint")
    return sorted(there, key=lambda one: one.step)


def _best(there: Sequence[Saved], count: int, phase: str = "") -> list[int]:
    phase = phase or there[-1].phase
    return best([one for one in there if one.phase == phase], count)


def _average_steps(run: Path, store: Store | None, steps: list[int], out: Path) -> str:
    with closing(_copies(run, store, steps)) as copies:
        average(copies, out, {"averaged": steps, "run": run.name})
    return f"{out}: the mean of the weights at steps {', '.join(map(str, steps))}"


def _copies(run: Path, store: Store | None, steps: list[int]) -> Generator[Path, None, None]:
    """Yield a whole copy of each checkpoint, of which one from the store is deleted after use."""
    for step in steps:
        folder = checkpoint_folder(run, step)
        problem, _ = verify(folder)
        if not problem:
            yield folder
            continue
        if store is None:
            raise UserError(f"{folder}: the checkpoint cannot be used: {problem}")
        copy = run / f".{folder.name}.copy"
        problem, manifest = store.manifest(step)
        problem = problem or store.fetch(step, manifest, copy)
        if problem:
            raise UserError(f"{store.address(step)}: the checkpoint cannot be used: {problem}")
        try:
            yield copy
        finally:
            shutil.rmtree(copy)


def average(folders: Iterable[Path], out: Path, about: dict[str, Any]) -> None:
    """Write the mean of the weights of verified checkpoints to `out`, replacing an earlier one.

    Raises UserError if they are of different models, or `out` is something else.
    """
    if out.exists() and not (out / MANIFEST).is_file():
        raise UserError(f"{out}: exists and is no average; choose another --out")
    shape: dict[str, Any] = {}
    weights: dict[str, torch.Tensor] = {}
    for count, folder in enumerate(folders, 1):
        theirs = json.loads((folder / MODEL).read_bytes())
        if count == 1:
            shape, model = theirs, MaskedLM(EncoderConfig(**theirs))
            weights = {name: w.zero_() for name, w in model.state_dict().items()}
        elif theirs != shape:
            raise UserError(f"{folder}: is another model than the checkpoints before it")
        reader = StateReader(folder)
        for name, mean in weights.items():
            one = torch.empty_like(mean)
            load_state({"model": {name: one}}, reader)
            mean.lerp_(one, 1 / count)  # in place, and exact for equals
    partial = out.with_name(f".{out.name}.partial")
    try:
        with disk_errors(partial, "The average is not written, the run is as it was"):
            _write(weights, shape, about, partial)
            shutil.rmtree(out, ignore_errors=True)
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    weights: dict[str, torch.Tensor], shape: dict[str, Any], about: dict[str, Any], folder: Path
) -> None:
    """Write a folder like a checkpoint's, in place of what a killed process left there."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / STATE).mkdir(parents=True)
    save_state({"model": weights}, folder, None)
    (folder / MODEL).write_text(json.dumps(shape))
    files = {
        path.relative_to(folder).as_posix(): describe_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {"format": FORMAT, **about, "files": files}
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=1))
