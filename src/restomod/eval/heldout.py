"""`restomod eval`: a run's model on its held-out data, beside what token frequencies alone would
do."""

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
from restomod.model.encoder import MaskedLM
from restomod.tools.export import how_to_load
from restomod.tools.report import write_report
from restomod.tools.runs import load_model, run_recipe
from restomod.train.evaluation import evaluate, heldout_batches
from restomod.train.initial import unigram

EXAMPLES = 2
"""Fill-mask examples of each held-out data set, at least."""


def evaluate_run(folder: Path) -> str:
    """Evaluate the newest whole checkpoint, write evaluation.json and the report; return a
    summary."""
    recipe = run_recipe(folder)
    if not recipe.evaluation.streams:
        raise UserError(f"{folder}: its recipe names no evaluation.streams")
    sources = open_sources(recipe)
    model = load_model(folder)
    results = evaluation(model, recipe, sources)
    exported = folder / "exported"
    if exported.is_dir():
        results["exported"] = str(exported)
    (folder / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n")
    text = summary(results) + f"\nreport: {write_report(folder)}\n"
    return text + (how_to_load(exported) if exported.is_dir() else "")


def evaluation(model: MaskedLM, recipe: Recipe, sources: Sources) -> dict[str, Any]:
    """Return {"domains": {name: loss, accuracy, unigram_loss, unigram_accuracy, masked_tokens},
    "fill_mask": [text, expected, predictions]}; losses in nats a predicted token, on the same
    positions.
    """
    phase: PhaseConfig = recipe.trained_phases[-1]
    batches = heldout_batches(recipe, phase, sources)
    results: dict[str, dict[str, float]] = evaluate(model, batches)
    shares = unigram(phase, sources, sources.tokenizer.vocab_size)
    for domain, parts in {**batches, "all": [b for part in batches.values() for b in part]}.items():
        results[domain] |= unigram_baseline(parts, shares)
    count = max(recipe.evaluation.samples, EXAMPLES)
    passages = hidden_words(sources.heldout.values(), sources.tokenizer, recipe.seed, count)
    return {"domains": results, "fill_mask": guess(model, passages, sources.tokenizer)}


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
    lines = [
        f"{'held-out':<12}{'loss':>8}{'unigram':>9}{'below':>8}{'accuracy':>10}{'unigram':>9}{'masked':>9}"
    ]
    for domain, r in results["domains"].items():
        lines.append(
            f"{domain:<12}{r['loss']:>8.3f}{r['unigram_loss']:>9.3f}"
            f"{r['unigram_loss'] - r['loss']:>8.3f}{r['accuracy']:>10.1%}"
            f"{r['unigram_accuracy']:>9.1%}{r['masked_tokens']:>9.0f}"
        )
    lines.append("(nats a predicted token; the unigram predicts by training frequency alone)")
    for example in results["fill_mask"]:
        text = " ".join(example["text"].split())
        guesses = ", ".join(
            f"{guess['token'].strip()!r} {guess['probability']:.0%}"
            for guess in example["predictions"]
        )
        lines += ["", f"{example['domain']}: {text}"]
        lines.append(f"  was {example['expected'].strip()!r}; guesses {guesses}")
    return "\n".join(lines) + "\n"
