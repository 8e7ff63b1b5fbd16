"""`restomod eval`: a run's model on its held-out data, beside what token frequencies alone would
do.

In: a run, a checkpoint or an average. Out: text, and of a run evaluation.json and its report.
`commands.py` calls it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from restomod.config import PhaseConfig, Recipe
from restomod.data.batch import Batch
from restomod.data.mlm import IGNORED
from restomod.data.sources import Sources, open_sources
from restomod.errors import UserError
from restomod.eval.fill_mask import guess, hidden_words
from restomod.eval.probe import Probe
from restomod.model.encoder import MaskedLM
from restomod.tools.export.export import how_to_load
from restomod.tools.report.run import write_report
from restomod.tools.runs import load_model, run_of, run_recipe
from restomod.train.evaluation import MAIN, evaluate, heldout_batches, views
from restomod.train.initial import unigram

EXAMPLES = 2
"""Fill-mask examples of each held-out data set, at least."""


def evaluate_run(folder: Path) -> str:
    """Evaluate the newest whole checkpoint, write evaluation.json and the report; return a
    summary.

    Of one checkpoint or an average, on its run's data, the summary is all."""
    run = run_of(folder)
    recipe = run_recipe(run)
    if not (recipe.evaluation.streams or recipe.evaluation.probes):
        raise UserError(f"{folder}: its recipe names no evaluation.streams")
    sources = open_sources(recipe)
    model = load_model(folder)
    results = evaluation(model, recipe, sources)
    if run != folder:
        return summary(results)
    exported = folder / "exported"
    if exported.is_dir():
        results["exported"] = str(exported)
    (folder / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n")
    text = summary(results) + f"\nreport: {write_report(folder)}\n"
    return text + (how_to_load(exported) if exported.is_dir() else "")


def evaluation(model: MaskedLM, recipe: Recipe, sources: Sources) -> dict[str, Any]:
    """Return {"domains": {name: loss, accuracy, unigram_loss, unigram_accuracy, masked_tokens},
    "views": {view: domains}, "probes": {name: accuracy, majority, examples}, "fill_mask": [text,
    expected, predictions]}; losses in nats a predicted token, on the same positions.
    """
    phase: PhaseConfig = recipe.trained_phases[-1]
    shares = unigram(recipe.trained_phases, sources, sources.tokenizer.vocab_size)
    results = {
        view: _beside_unigram(model, heldout_batches(recipe, phase, sources, view), shares)
        for view in views(recipe, phase)
    }
    count = max(recipe.evaluation.samples, EXAMPLES)
    passages = hidden_words(sources.heldout.values(), sources.tokenizer, recipe.seed, count)
    return {
        "domains": results.pop(MAIN),
        "views": results,
        "probes": {
            name: Probe(examples, sources.tokenizer).judge(model)
            for name, examples in sources.probes.items()
        },
        "fill_mask": guess(model, passages, sources.tokenizer),
    }


def _beside_unigram(
    model: MaskedLM, batches: dict[str, list[Batch]], shares: np.ndarray
) -> dict[str, dict[str, float]]:
    results = evaluate(model, batches)
    parts = {**batches, "all": [b for part in batches.values() for b in part]}
    return {name: of | unigram_baseline(parts[name], shares) for name, of in results.items()}


def unigram_baseline(batches: list[Batch], shares: np.ndarray) -> dict[str, float]:
    """Return loss and accuracy of predicting every masked token by `shares` [V], the ids'
    frequencies in the training mixture."""
    labels = torch.cat([b["labels"] for b in batches] or [torch.zeros(0, dtype=torch.int64)])
    kept = labels[labels != IGNORED].numpy()
    if len(kept) == 0:
        return {"unigram_loss": 0.0, "unigram_accuracy": 0.0}
    return {
        "unigram_loss": float(-np.log(shares[kept]).mean()),
        "unigram_accuracy": float((kept == shares.argmax()).mean()),
    }


def summary(results: dict[str, Any]) -> str:
    """Return the evaluation as a table and the fill-mask examples, for the terminal."""
    names = ["held-out", *results["domains"], *results["views"]]
    width = max(12, *(len(name) + 1 for name in names))
    lines = [
        f"{'held-out':<{width}}{'loss':>8}{'unigram':>9}{'below':>8}{'accuracy':>10}{'unigram':>9}{'masked':>9}"
    ]
    lines += [_line(domain, width, result) for domain, result in results["domains"].items()]
    views = results["views"].items()
    lines += [_line(view, width, domains["all"]) for view, domains in views if domains]
    lines.append("(nats a predicted token; the unigram predicts by training frequency alone)")
    for name, probe in results["probes"].items():
        lines.append(
            f"probe {name}: {probe['accuracy']:.1%} of {probe['examples']} labels right; the "
            f"commonest one is {probe['majority']:.1%}"
        )
    for example in results["fill_mask"]:
        text = " ".join(example["text"].split())
        guesses = ", ".join(
            f"{_shown(guess['token'])} {guess['probability']:.0%}"
            for guess in example["predictions"]
        )
        lines += ["", f"{example['domain']}: {text}"]
        lines.append(f"  was {_shown(example['expected'])}; guesses {guesses}")
    return "\n".join(lines) + "\n"


def _shown(token: str) -> str:
    """Write a token without the space around it, unless it is nothing else."""
    return repr(token.strip() or token)


def _line(name: str, width: int, result: dict[str, float]) -> str:
    return (
        f"{name:<{width}}{result['loss']:>8.3f}{result['unigram_loss']:>9.3f}"
        f"{result['unigram_loss'] - result['loss']:>8.3f}{result['accuracy']:>10.1%}"
        f"{result['unigram_accuracy']:>9.1%}{result['masked_tokens']:>9.0f}"
    )
