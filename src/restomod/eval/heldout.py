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
from restomod.data.random import keyed_generator
from restomod.data.shards import ShardedDataset
from restomod.data.sources import Sources, open_sources
from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError
from restomod.model.encoder import MaskedLM
from restomod.tools.export import how_to_load
from restomod.tools.report import write_report
from restomod.tools.runs import load_model, run_recipe
from restomod.train.evaluation import evaluate, heldout_batches
from restomod.train.initial import unigram

CONTEXT = 32
"""Tokens of a fill-mask example."""
EXAMPLES = 2
"""Fill-mask examples of each held-out data set."""


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
    examples = [
        example
        for dataset in sources.heldout.values()
        for example in fill_mask(model, dataset, sources.tokenizer, recipe.seed)
    ]
    return {"domains": results, "fill_mask": examples}


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


@torch.no_grad()
def fill_mask(
    model: MaskedLM, dataset: ShardedDataset, tokenizer: Tokenizer, seed: int
) -> list[dict[str, Any]]:
    """Hide one word of each of a few held-out passages and return the model's five best guesses;
    a causal model guesses from what comes before."""
    generator = keyed_generator(seed, "fill_mask", dataset.name)
    examples: list[dict[str, Any]] = []
    shards = np.repeat(np.arange(len(dataset.shard_documents)), dataset.shard_documents)
    starts = np.cumsum(dataset.shard_documents) - dataset.shard_documents
    for document in generator.permutation(dataset.documents).tolist():
        if len(examples) == EXAMPLES:
            break
        shard = int(shards[document])
        tokens = dataset.tokens(shard, document - int(starts[shard])).astype(np.int64)
        if len(tokens) < CONTEXT:
            continue
        begin = int(generator.integers(len(tokens) - CONTEXT + 1))
        passage = tokens[begin : begin + CONTEXT].copy()
        words = [n for n in range(4, CONTEXT - 4) if _is_word(tokenizer.decode([int(passage[n])]))]
        if not words:
            continue
        hidden = int(generator.choice(words))
        expected = tokenizer.decode([int(passage[hidden])])
        passage[hidden] = tokenizer.mask_id
        ids = torch.from_numpy(np.concatenate([[tokenizer.cls_id], passage, [tokenizer.sep_id]]))
        place = hidden if model.config.causal else hidden + 1  # [CLS] comes first
        logits = model.logits(ids, torch.tensor([0, len(ids)]))[place]
        best = logits.softmax(0).topk(5)
        examples.append(
            {
                "domain": dataset.domain,
                "text": tokenizer.decode(passage.tolist()),
                "expected": expected,
                "predictions": [
                    {"token": tokenizer.decode([token]), "probability": probability}
                    for token, probability in zip(
                        best.indices.tolist(), best.values.tolist(), strict=True
                    )
                ],
            }
        )
    return examples


def _is_word(text: str) -> bool:
    return len(text.strip()) > 2 and text.strip().isalpha()


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
