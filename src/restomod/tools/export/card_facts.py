"""What there is to tell of a model: its shape, its run, its losses, its data.

In: the model, what it was exported from, what the recipe or the command says. Out: `Facts`, of
which `card_sections.py` makes text. `export.py` is the caller.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restomod.config import CardConfig, Recipe
from restomod.errors import UserError
from restomod.impossible import impossible_card
from restomod.model.encoder import MaskedLM
from restomod.prepare.files import read_bytes
from restomod.recipe import load_recipe
from restomod.strict import load_strict
from restomod.tools.export.card_suites import SuiteScore, suite_scores
from restomod.tools.record.metrics_log import RunLog, numbers, read_log
from restomod.train.checkpoints.manifest import MANIFEST, newest_step, read_manifest

log = logging.getLogger(__name__)


@dataclass
class Facts:
    """What there is to tell of a model."""

    name: str
    model: MaskedLM
    card: CardConfig
    origin: str = "another folder"
    """What was exported: a run's checkpoint, an average, another folder."""
    recipe: Recipe | None = None
    log: RunLog | None = None
    domains: dict[str, dict[str, float]] = field(default_factory=dict)
    """Held-out loss, accuracy and the unigram's, by domain; those at other mask rates and lengths
    under the name of the view."""
    probes: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of frozen features: accuracy, what the commonest label would give, examples."""
    suites: list[SuiteScore] = field(default_factory=list)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the streams that `restomod prepare` wrote: the source in its manifest."""


@dataclass
class _CardOnly:
    card: CardConfig = field(default_factory=CardConfig)


def gather(model: MaskedLM, source: Path, run: Path, overrides: list[str]) -> Facts:
    """Return what is known of a model that was exported from `source`: a run, a checkpoint or an
    average of it, or another folder. `overrides` are card.KEY=VALUE.

    Raises UserError for any other, and for values that the hub would not take.
    """
    for word in overrides:
        if not word.startswith("card."):
            raise UserError(f"{word}: export takes card.KEY=VALUE only")
    card = load_strict([], overrides, _CardOnly, lambda it: impossible_card(it.card)).card
    config = run / "config.yaml"
    if not config.is_file():
        return Facts(source.resolve().name, model, card)
    try:
        recipe = load_recipe([config], overrides)
    except UserError as error:  # of another version: the model is exported nevertheless
        log.warning("the model card tells nothing of the run: %s", error)
        return Facts(run.resolve().name, model, card)
    facts = Facts(recipe.run_name, model, recipe.card, recipe=recipe)
    manifest = _manifest(source)
    averaged = manifest.get("averaged") or []
    step = max(averaged) if averaged else manifest.get("step") or newest_step(run)
    facts.origin = f"the checkpoint at step {step:,}"
    if averaged:
        facts.origin = f"the mean of the checkpoints at steps {', '.join(map(str, averaged))}"
    if (run / "metrics.jsonl").is_file():
        facts.log = read_log(run / "metrics.jsonl", step)
    if not averaged:
        found = _evaluation(run, step, manifest.get("evaluation"), facts.log)
        facts.domains = {name: numbers(x) for name, x in found.get("domains", {}).items()}
        for view, domains in (found.get("views") or {}).items():
            facts.domains[f"all, {view}"] = numbers(domains.get("all"))
        facts.probes = {name: numbers(x) for name, x in (found.get("probes") or {}).items()}
    facts.suites = suite_scores(run, source)
    for name, stream in recipe.data.streams.items():
        facts.sources |= {name: found} if (found := _prepared(stream.path)) else {}
    return facts


def _manifest(source: Path) -> dict[str, Any]:
    path = source / MANIFEST
    return read_manifest(path.read_bytes())[1] if path.is_file() else {}


def _evaluation(
    run: Path, step: int, saved: dict[str, Any] | None, log: RunLog | None
) -> dict[str, Any]:
    """Return the evaluation at that step, from evaluation.json if that is of the same weights,
    which the same loss tells: it knows the unigram, too."""
    training = next(
        (e for e in (saved, log.last_eval if log else {}) if e and e["step"] == step), {}
    )
    try:
        later = json.loads((run / "evaluation.json").read_text())
        loss = later["domains"]["all"]["loss"]
        if not training:
            return later if step == newest_step(run) else {}
        return later if abs(loss - training["domains"]["all"]["loss"]) < 1e-4 else training
    except (OSError, ValueError, KeyError, TypeError):
        return training


def _prepared(path: str) -> dict[str, Any]:
    """Return what the manifest of a preparation, which wrote OUT/SOURCE/SPLIT, says of a stream's
    source; nothing if somebody else wrote it or it cannot be read."""
    parts = path.rstrip("/").split("/")
    try:
        manifest = json.loads(read_bytes("/".join([*parts[:-2], "manifest.json"])))
        found = [s for s in manifest["sources"] if s["name"] == parts[-2]]
    # An object store's library has its own errors, and the card can do without.
    except Exception:
        return {}
    return found[0] if found else {}
