"""A run's folder: the resolved recipe, the tokenizer, and the metrics taken back to where the run
goes on from. Called by `builder.py` when a run begins."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from composer.utils import dist

from restomod.config import Recipe
from restomod.data.mixture import token_shares
from restomod.data.sources import Sources
from restomod.data.tokenizer import Tokenizer
from restomod.recipe import save_recipe
from restomod.train.agreement import Group, on_first
from restomod.train.clock import RunClock
from restomod.train.metrics import MetricsLog
from restomod.train.saving import disk_errors
from restomod.train.start import Start

log = logging.getLogger(__name__)


def begin_run_folder(
    recipe: Recipe,
    sources: Sources,
    start: Start,
    clock: RunClock,
    metrics: MetricsLog,
    group: Group,
) -> None:
    """Create the run's folder, or take its log back to the step that the run goes on from; all
    ranks raise UserError if the disk is full or refuses."""
    folder = recipe.run_folder

    def write() -> None:
        with disk_errors(folder, "Training has not begun, checkpoints are as they were"):
            folder.mkdir(parents=True, exist_ok=True)
            save_recipe(recipe, folder / "config.yaml")
            _keep_tokenizer(Path(recipe.tokenizer), sources.tokenizer, folder / "tokenizer")
            metrics.rewind(start.step if start.resumes else -1)

    on_first(write, group)
    about = {
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


def _keep_tokenizer(source: Path, tokenizer: Tokenizer, folder: Path) -> None:
    """Keep the tokenizer's files with the run, for export; a bare tokenizer.json gets the
    configuration that tells transformers which special token plays which role."""
    folder.mkdir(exist_ok=True)
    if source.is_dir():
        for file in source.iterdir():
            if file.is_file() and file.suffix in (".json", ".txt", ".model", ".jinja"):
                shutil.copyfile(file, folder / file.name)
    else:
        shutil.copyfile(source, folder / "tokenizer.json")
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
