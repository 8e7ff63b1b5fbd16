"""A run's folder: the resolved recipe, the tokenizer, and the metrics taken back to where the run
goes on from. Called by `builder.py` when a run begins."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from composer.utils import dist

from restomod.config import Recipe
from restomod.data.mixture import token_shares
from restomod.data.sources import Sources
from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError
from restomod.recipe import load_recipe, save_recipe
from restomod.train.agreement import Group, on_first
from restomod.train.checkpoints.saving import disk_errors
from restomod.train.clock import RunClock
from restomod.train.guards import guarded
from restomod.train.metrics import MetricsLog
from restomod.train.start import Start

log = logging.getLogger(__name__)

TOKENIZER_SUFFIXES = (".json", ".txt", ".model", ".jinja")
"""Of the files of a tokenizer's folder that are kept."""


def begin_run_folder(
    recipe: Recipe,
    sources: Sources,
    start: Start,
    clock: RunClock,
    metrics: MetricsLog,
    group: Group,
    facts: dict[str, Any],
) -> None:
    """Create the run's folder, or take its log back to the step that the run goes on from; all
    ranks raise UserError if the disk is full or refuses. `facts` is what the line of the beginning
    says besides, on rank 0."""
    folder = recipe.run_folder
    run_id = ""

    def write() -> None:
        nonlocal run_id
        with disk_errors(folder, "Training has not begun, checkpoints are as they were"):
            folder.mkdir(parents=True, exist_ok=True)
            run_id = _run_id(recipe, start)
            save_recipe(recipe, folder / "config.yaml")
            _keep_tokenizer(Path(recipe.tokenizer), sources.tokenizer, folder / "tokenizer")
            metrics.rewind(start.step if start.resumes else -1)

    on_first(write, group)
    about = {
        "run_id": run_id,
        **facts,
        "world_size": dist.get_world_size(),
        "changed": start.changed,
        "asked": {
            phase.name: token_shares(phase, sources.streams) for phase in recipe.trained_phases
        },
        "stream_domains": {name: dataset.domain for name, dataset in sources.streams.items()},
    }
    if start.resumes:
        clock.before_s = start.manifest["time_s"]
        metrics.write("resume", step=start.step, from_step=start.step, **about)
        log.info("resuming from %s", start.folder)
    else:
        metrics.write("start", step=start.step, from_checkpoint=str(start.folder or ""), **about)
        if start.folder:
            log.info("starting from %s", start.folder)


def _run_id(recipe: Recipe, start: Start) -> str:
    """Return the name under which W&B knows the run: that of the log, if the run goes on or begins
    anew with the same recipe, since it was killed before its first checkpoint; or a new one, which
    W&B's agent gives to the runs that it starts."""
    same = start.resumes
    if not same:
        with contextlib.suppress(UserError):
            same = guarded(load_recipe([recipe.run_folder / "config.yaml"])) == guarded(recipe)
    if same:
        with (
            contextlib.suppress(OSError, ValueError, KeyError),
            (recipe.run_folder / "metrics.jsonl").open() as file,
        ):
            return str(json.loads(next(file, ""))["run_id"])
    return os.environ.get("WANDB_RUN_ID") or f"{recipe.run_name}-{secrets.token_hex(4)}"


def _keep_tokenizer(source: Path, tokenizer: Tokenizer, folder: Path) -> None:
    """Keep the tokenizer's files with the run, for export; a bare tokenizer.json gets the
    configuration that tells transformers which special token plays which role."""
    folder.mkdir(exist_ok=True)
    if source.is_dir():
        files = {file: file.name for file in source.iterdir() if file.suffix in TOKENIZER_SUFFIXES}
    else:
        files = {source: "tokenizer.json"}
    for file, name in files.items():
        # A run may be given the tokenizer that it has kept.
        if file.is_file() and file.resolve() != (folder / name).resolve():
            shutil.copyfile(file, folder / name)
    config = folder / "tokenizer_config.json"
    if not config.exists():
        ids = {
            "cls_token": tokenizer.cls_id,
            "sep_token": tokenizer.sep_id,
            "pad_token": tokenizer.pad_id,
            "mask_token": tokenizer.mask_id,
            "unk_token": tokenizer.unk_id,
        }
        names = {k: tokenizer.backend.id_to_token(i) for k, i in ids.items() if i is not None}
        config.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
