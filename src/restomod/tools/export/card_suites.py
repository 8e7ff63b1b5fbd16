"""What `restomod eval --suite` found of a model, for its card.

In: results.json of the suites in a run's `evaluations/`. Out: a score for each task. Results of
other weights, or in a form that is not known, are left out. `card_facts.py` is the caller.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restomod.train.checkpoints.manifest import MANIFEST, checkpoint_folder, newest_step


@dataclass
class SuiteScore:
    """A model on a task of a suite."""

    suite: str
    task: str
    kind: str
    """retrieval or classification."""
    metric: str
    score: float
    error: float | None
    """Standard error, if known."""
    others: dict[str, float]
    """What baselines reach, by name."""


def suite_scores(run: Path, source: Path) -> list[SuiteScore]:
    """Return the scores of what `source` is: a run, or a checkpoint or an average of it."""
    found: list[SuiteScore] = []
    for path in sorted((run / "evaluations").glob("*/results.json")):
        try:
            results = json.loads(path.read_text())
            found += _scores(results, _name(results, path, run, source))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def _name(results: dict[str, Any], path: Path, run: Path, source: Path) -> str:
    """Return what the results call the model; nothing if they are of another one. A run's own are
    of its newest checkpoint, so they count only if they are newer than that."""
    newest = checkpoint_folder(run, newest_step(run))
    same = {source.resolve()}
    if source.resolve() == run.resolve():
        same = {newest.resolve()}
        if path.stat().st_mtime >= (newest / MANIFEST).stat().st_mtime:
            same.add(run.resolve())
    names = [m["name"] for m in results["models"] if Path(m["path"]).resolve() in same]
    return names[0] if names else ""


def _scores(results: dict[str, Any], name: str) -> list[SuiteScore]:
    models = {model["name"] for model in results["models"]}
    found = []
    for task, entry in results["tasks"].items():
        systems = entry.get("systems", {})
        if name not in systems:
            continue
        metric = entry["metric"]
        scores = {key: float(system["scores"][metric]) for key, system in systems.items()}
        error = systems[name].get("standard_error")
        others = {key: score for key, score in scores.items() if key not in models}
        kind = entry["kind"]
        found.append(SuiteScore(results["suite"], task, kind, metric, scores[name], error, others))
    return found
