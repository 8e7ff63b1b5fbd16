"""`restomod eval MODEL --suite NAME`: models and baselines on a suite's tasks, and what came out.

In: checkpoints, runs or folders, a suite. Out: results.json, results.md and, for several
checkpoints of a run, leaderboard.html in one folder. `commands.py` calls this.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from restomod.errors import UserError
from restomod.eval.encoders import (
    FirstAndLast,
    Reading,
    System,
    Treatments,
    baseline,
    fingerprint,
    foreign_system,
    is_foreign,
    load_texts,
    model_systems,
    random_encoder,
    require,
    sizes,
)
from restomod.eval.finetune_tasks import FinetuneTasks, check_finetune
from restomod.eval.leaderboard import write_leaderboard
from restomod.eval.mteb_tasks import MissingData, run_mteb
from restomod.eval.offline.build import other_pairs
from restomod.eval.offline.packages import Packages, choose_packages
from restomod.eval.results import TaskScores, markdown, summarise
from restomod.eval.suite import Suite, SuiteTask
from restomod.eval.tasks import run_classification, run_retrieval
from restomod.eval.treatments import probe, whitening
from restomod.harvest.installed import find_sources
from restomod.provenance import versions
from restomod.tools.runs import run_of
from restomod.train.checkpoints.manifest import (
    checkpoint_folder,
    local_steps,
    read_manifest,
    verify,
)
from restomod.vectors.texts import TextEncoder

log = logging.getLogger(__name__)

FORMAT = 1
BASELINE_NAMES = {"random": "random init", "bag": "bag of its embeddings", "tfidf": "TF-IDF"}
BASELINE_NAMES["minilm"] = "MiniLM-L6"
LIBRARIES = (
    "restomod",
    "torch",
    "numpy",
    "scikit-learn",
    "sentence-transformers",
    "mteb",
    "pylate",
    "datasets",
)
OF_OUR_MODEL = ("random", "bag")
LEAST_PAIRS = 50


@dataclass
class Model:
    """A model to judge."""

    path: Path
    name: str
    slots: int | None = None
    """Token slots that it was trained for, if known."""


@dataclass
class Request:
    """What the command line asks for."""

    paths: list[Path]
    suite: Suite
    command: str
    baseline: str = ""
    """Name of a baseline, or a model's path; random by default."""
    seeds: int = 0
    """Instead of the suite's."""
    out: Path | None = None
    all_checkpoints: bool = False


@dataclass
class Contestants:
    """Everything that is scored."""

    systems: list[System] = field(default_factory=list)
    packages: Packages | None = None
    tuning: FinetuneTasks | None = None


def run_suite(request: Request) -> str:
    """Run the suite, write the results, return what to print."""
    started = time.monotonic()
    suite = request.suite
    suite.seeds = request.seeds or suite.seeds
    models = models_of(request)
    chosen = _baseline_model(request, suite, models)
    out = request.out or run_of(models[0].path) / "evaluations" / suite.name
    check_finetune(suite)
    judged = [*models, *([chosen] if chosen and chosen not in models else [])]
    contestants = _contestants(suite, judged)
    contestants.tuning = FinetuneTasks(suite, {m.name: m.path for m in judged}, out)
    name = chosen.name if chosen else BASELINE_NAMES.get(request.baseline or "random", "")
    tasks = {key: _run_task(key, task, suite, contestants) for key, task in suite.tasks.items()}
    if all(task.skipped for task in tasks.values()):
        reason = next(iter(tasks.values())).skipped
        raise UserError(f"suite {suite.name}: no task has its data here; the first: {reason}")
    results = {
        "format": FORMAT,
        "suite": suite.name,
        "description": suite.description,
        "note": suite.note,
        "command": request.command,
        "baseline": name,
        "seeds": suite.seeds,
        "settings": asdict(suite),
        "models": [{"name": m.name, "path": str(m.path), "slots": m.slots} for m in models],
        "systems": {system.name: system.about for system in contestants.systems},
        "tasks": {key: summarise(task, name) for key, task in tasks.items()},
        "versions": versions(LIBRARIES),
        "seconds": round(time.monotonic() - started, 1),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results)
    (out / "results.md").write_text(text)
    written = [out / "results.json", out / "results.md"]
    if sum(model.slots is not None for model in models) > 1:
        written.append(write_leaderboard(results, out / "leaderboard.html"))
    return text + "\n" + "".join(f"{path}\n" for path in written)


def models_of(request: Request) -> list[Model]:
    """Return the models that are named, or every whole checkpoint of the run that is; raise
    UserError for one that is named twice, whose scores would pass for those of two seeds."""
    if not request.all_checkpoints:
        places = [path.resolve() for path in request.paths]
        for n, path in enumerate(request.paths):
            if places[n] in places[:n]:
                raise UserError(f"{path}: is named twice")
        names = [path.resolve().name for path in request.paths]
        return [
            Model(path, name if names.count(name) == 1 else str(path), slots_of(path))
            for path, name in zip(request.paths, names, strict=True)
        ]
    if len(request.paths) != 1:
        raise UserError("--all-checkpoints: name one run")
    run = request.paths[0]
    models = []
    for step in sorted(local_steps(run)):
        folder = checkpoint_folder(run, step)
        problem, _ = verify(folder)
        if problem:
            log.warning("%s is left out: %s", folder, problem)
        else:
            models.append(Model(folder, folder.name, slots_of(folder)))
    if not models:
        raise UserError(f"{run}: --all-checkpoints: holds no whole checkpoint")
    return models


def slots_of(path: Path) -> int | None:
    """Return the token slots that a checkpoint was trained for; None if it does not say."""
    try:
        problem, manifest = read_manifest((path / "manifest.json").read_bytes())
    except OSError:
        return None
    return None if problem else manifest.get("slots")


def _baseline_model(request: Request, suite: Suite, models: Sequence[Model]) -> Model | None:
    """Return the model that --baseline names by a path, perhaps one of `models`; None for the name
    of a baseline, which is added to the suite's."""
    if not request.baseline or request.baseline in BASELINE_NAMES:
        if request.baseline and request.baseline not in suite.baselines:
            suite.baselines.append(request.baseline)
        return None
    path = Path(request.baseline)
    if not path.is_dir():
        known = ", ".join(BASELINE_NAMES)
        raise UserError(f"--baseline {request.baseline}: no such folder, and none of {known}")
    for model in models:
        if model.path.resolve() == path.resolve():
            return model
    return Model(path, f"baseline {path.resolve().name}")


def _contestants(suite: Suite, models: Sequence[Model]) -> Contestants:
    """Load the models, choose the packages, make the baselines and the treated copies."""
    sections = [task.retrieval or task.classification for task in suite.tasks.values()]
    for module, needed in (("sklearn", sections), ("mteb", [t.mteb for t in suite.tasks.values()])):
        if any(needed):
            require(module)
    result = Contestants()
    texts = {
        model.name: load_texts(model.path, suite.max_tokens)
        for model in models
        if not is_foreign(model.path)
    }
    first = reference(list(texts.values()))
    if suite.treatments or any(section and section.offline for section in sections):
        corpus = Path(suite.corpus) if suite.corpus else None
        result.packages = choose_packages(models[0].path, corpus, suite.site_packages or None)
    treatments = _treatments(suite, result.packages)
    for model in models:
        own = texts.get(model.name)
        if own is None:
            result.systems.append(foreign_system(model.path, model.name))
        else:
            about = {"path": str(model.path), "tuning": "none: zero-shot", **sizes(own)}
            about["fingerprint"] = fingerprint(own.model)
            result.systems += model_systems(model.name, [own], about, treatments)
    for kind in suite.baselines:
        if kind in OF_OUR_MODEL and first is None:
            log.warning("baseline %s is left out: no model here is restomod's", kind)
        elif kind == "random":
            assert first is not None
            seeds = list(range(1, suite.seeds + 1))
            drawn = [random_encoder(first, seed) for seed in seeds]
            about = {"tuning": "none", "seeds": seeds, **sizes(first)}
            result.systems += model_systems(BASELINE_NAMES[kind], drawn, about, treatments)
        else:
            result.systems.append(baseline(kind, first))
    return result


def reference(encoders: Sequence[TextEncoder]) -> TextEncoder | None:
    """Return the model that baselines take their architecture and limits from: the first, or one of
    its size that reads longer texts, as later checkpoints of a run may; None without any."""

    def size(encoder: TextEncoder) -> tuple[int, int]:
        return encoder.model.config.layers, encoder.model.config.hidden_size

    alike = [encoder for encoder in encoders if size(encoder) == size(encoders[0])]
    return max(alike, key=lambda encoder: encoder.max_tokens, default=None)


def _treatments(suite: Suite, packages: Packages | None) -> Treatments:
    """Return what is to be done to untuned features, fitted on packages that are in no task."""
    if not suite.treatments or packages is None:
        return {}
    sources = find_sources(suite.site_packages or None)
    pairs = other_pairs(packages, sources, suite.probe.pairs)
    queries, documents = pairs["queries"], pairs["documents"]
    if len(queries) < LEAST_PAIRS:
        log.warning("nothing is whitened or probed: %d pairs are too few", len(queries))
        return {}
    log.info("%d pairs of %d other packages", len(queries), len(pairs["distributions"]))

    def features(encoder: FirstAndLast) -> tuple[np.ndarray, np.ndarray]:
        return encoder.encode(queries, Reading(query=True)), encoder.encode(documents, Reading())

    fits: Treatments = {
        "whitened": lambda encoder, _: whitening(*features(encoder)),
        "probe": lambda encoder, seed: probe(*features(encoder), suite.probe, seed),
    }
    return {name: fits[name] for name in suite.treatments}


def _run_task(name: str, task: SuiteTask, suite: Suite, contestants: Contestants) -> TaskScores:
    started = time.monotonic()
    systems, packages = contestants.systems, contestants.packages
    log.info("%s: %d models and baselines", name, len(systems))
    if task.retrieval:
        scores = run_retrieval(name, task.retrieval, suite, systems, packages)
    elif task.finetune:
        assert contestants.tuning is not None
        scores = contestants.tuning.run(name, task.finetune)
    elif task.mteb:
        try:
            scores = run_mteb(name, task.mteb, suite, systems)
        except MissingData as error:
            scores = TaskScores(name, "mteb", {}, skipped=str(error))
    else:
        assert task.classification
        scores = run_classification(name, task.classification, suite, systems, packages)
    log.info("%s: took %.0f s", name, time.monotonic() - started)
    return scores
