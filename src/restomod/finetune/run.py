"""`restomod finetune`: every seed trained and scored, the best one's model, and results.json.

In: a checked configuration. Out: its folder: `config.json`, `seed-N/` with what a killed run goes
on from, `model/` and `results.json` at the end. The same command goes on, or says what came out.
`commands.py` and `grid.py` call `finetune`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restomod.errors import UserError
from restomod.finetune.config import MAJORITY, FinetuneConfig
from restomod.finetune.data import require
from restomod.interrupts import Interrupts
from restomod.prepare.atomic import read_json, write_json
from restomod.provenance import versions
from restomod.recipe import flatten
from restomod.train.checkpoints.manifest import newest_checkpoint

if TYPE_CHECKING:
    from restomod.finetune.tasks import Task

log = logging.getLogger(__name__)

CONFIG, RESULT, RESULTS, MODEL = "config.json", "result.json", "results.json", "model"
LIBRARIES = ("restomod", "torch", "transformers", "accelerate", "sentence-transformers")
FREE = ("out", "seeds", "training.checkpoint_s")
"""What may change when a fine-tuning goes on: seeds are added."""


@dataclass(frozen=True)
class Score:
    """What one seed came to."""

    seed: int
    metric: str
    """Name of the score that counts."""
    value: float
    scores: dict[str, float]
    """All scores, that one among them."""


def finetune(config: FinetuneConfig, interrupts: Interrupts, command: str = "") -> list[Score]:
    """Train all seeds, or go on with them; return a score for each.

    Raises UserError, and Stopped where `interrupts` were asked to stop and what was done is saved.
    """
    out = Path(config.out)
    _require_one_process()
    if done := _done(config, out):
        return done
    source = _source(config, out)
    for name in ("accelerate", "datasets", "sklearn"):
        require(name)
    _quiet()
    task = _task(config, source)
    _begin(config, out, source, task)
    scores = [_run_seed(task, config, seed, out, interrupts) for seed in config.seeds]
    every = [Score(**read_json(path)["score"]) for path in sorted(out.glob(f"seed-*/{RESULT}"))]
    best = max(every, key=lambda score: score.value)
    _keep_model(out, best.seed)
    write_json(out / RESULTS, _results(config, task, source, every, best, command))
    return scores


def describe(config: FinetuneConfig, scores: list[Score]) -> str:
    """Return what came out, as text."""
    out = Path(config.out)
    rows = [(str(score.seed), score.scores) for score in scores]
    names = list(scores[0].scores)
    if len(scores) > 1:
        for label, function in (("mean", statistics.mean), ("median", statistics.median)):
            rows.append((label, {n: function([s.scores[n] for s in scores]) for n in names}))
    if majority := read_json(out / RESULTS)["data"].get(MAJORITY):
        rows.append((MAJORITY, majority))
    width = max(len(label) for label, _ in rows)
    lines = [" ".join(["seed".ljust(width), *(name.rjust(10) for name in names)])]
    for label, values in rows:
        cells = (f"{values[name]:.4f}".rjust(max(10, len(name))) for name in names)
        lines.append(" ".join([label.ljust(width), *cells]))
    return "\n".join([*lines, f"model: {out / MODEL}", f"all else: {out / RESULTS}", ""])


def _done(config: FinetuneConfig, out: Path) -> list[Score]:
    """Return the scores if all seeds have theirs, else none; raise UserError as `_same` does."""
    if not (out / RESULTS).is_file() or not _same(config, out):
        return []
    known = {seed["seed"]: Score(**seed) for seed in read_json(out / RESULTS)["seeds"]}
    if not set(config.seeds) <= known.keys():
        return []
    log.info("%s: is done", out / RESULTS)
    return [known[seed] for seed in config.seeds]


def _require_one_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "fine-tuning runs in one process, on one GPU; start seeds or tasks beside each other, "
            "with CUDA_VISIBLE_DEVICES, rather than ranks"
        )


def _same(config: FinetuneConfig, out: Path) -> bool:
    """Return whether `out` was begun; raise UserError if with another configuration."""
    if not (out / CONFIG).is_file():
        return False
    before, now = read_json(out / CONFIG)["config"], flatten(config)
    changed = [key for key in now if key not in FREE and before.get(key) != now[key]]
    if changed:
        told = "; ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in changed)
        raise UserError(f"{out}: was begun with another configuration: {told}. Name another `out`")
    return True


def _source(config: FinetuneConfig, out: Path) -> Path:
    """Return the folder of the model that all seeds start from; raise UserError.

    A run's newest checkpoint is looked up once, so that later seeds start from the same one.
    """
    if _same(config, out):
        source = Path(read_json(out / CONFIG)["source"])
        if not source.is_dir():
            raise UserError(
                f"{out}: was begun from {source}, which is gone; name another `out` and a model "
                "that stays (restomod export)"
            )
        return source
    path = Path(config.model)
    if not path.is_dir():
        raise UserError(f"model: {path}: no such folder")
    if not (path / "checkpoints").is_dir() or (path / "model.safetensors").is_file():
        return path.resolve()
    newest = newest_checkpoint(path)
    if newest is None:
        raise UserError(f"model: {path}: the run holds no whole checkpoint yet")
    return newest[0].resolve()


def _task(config: FinetuneConfig, source: Path) -> Task:
    if config.task == "retrieval":
        require("sentence_transformers")
        from restomod.finetune.retrieval import RetrievalTask

        return RetrievalTask(config, source)
    from restomod.finetune.tasks import ClassifierTask

    return ClassifierTask(config, source)


def _begin(config: FinetuneConfig, out: Path, source: Path, task: Task) -> None:
    """Note what the folder is begun with; raise UserError if it was with other data."""
    if (out / CONFIG).is_file():
        before = read_json(out / CONFIG)["data_digest"]
        if before != task.digest:
            raise UserError(
                f"{out}: was begun with other data (fingerprint {before}, now {task.digest}); name "
                "another `out`"
            )
        return
    begun = {"config": flatten(config), "source": str(source), "data_digest": task.digest}
    try:
        write_json(out / CONFIG, begun)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None


def _run_seed(
    task: Task, config: FinetuneConfig, seed: int, out: Path, interrupts: Interrupts
) -> Score:
    from restomod.finetune.trainer import Watch, fit

    folder = out / f"seed-{seed}"
    if (folder / RESULT).is_file():
        return Score(**read_json(folder / RESULT)["score"])
    folder.mkdir(exist_ok=True)
    trainer = task.trainer(folder, seed)
    watch = Watch(
        folder,
        f"seed {seed}",
        config.training.checkpoint_s,
        lambda: task.scores(trainer),
        task.metric,
        config.training.keep == "best",
        interrupts,
    )
    started = time.monotonic()
    facts = fit(trainer, watch)
    scores = task.scores(trainer)
    task.save(trainer, folder / MODEL)
    score = Score(seed, task.metric, scores[task.metric], scores)
    facts["seconds"] = round(time.monotonic() - started, 1)  # since it last went on
    write_json(folder / RESULT, {"score": dataclasses.asdict(score), **facts})
    for path in [*folder.glob("checkpoint-*"), *folder.glob("best.*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    log.info("seed %d: %s %.4f", seed, score.metric, score.value)
    return score


def _keep_model(out: Path, seed: int) -> None:
    """Move the best seed's model to its place and remove the others'."""
    best = out / f"seed-{seed}" / MODEL
    if best.is_dir():
        shutil.rmtree(out / MODEL, ignore_errors=True)
        best.replace(out / MODEL)
    for other in out.glob(f"seed-*/{MODEL}"):
        shutil.rmtree(other)


def _results(
    config: FinetuneConfig,
    task: Task,
    source: Path,
    scores: list[Score],
    best: Score,
    command: str,
) -> dict[str, Any]:
    values = [score.value for score in scores]
    return {
        "task": config.task,
        "metric": task.metric,
        "mean": statistics.mean(values),
        "median": statistics.median(values),
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
        "best_seed": best.seed,
        "seeds": [dataclasses.asdict(score) for score in scores],
        "source": str(source),
        "data": {**task.facts, "digest": task.digest},
        "command": command,
        "device": "cuda" if require("torch").cuda.is_available() else "cpu",
        "versions": versions(LIBRARIES),
        "config": dataclasses.asdict(config),
    }


def _quiet() -> None:
    """Keep libraries' advice about their own ways off the terminal."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
