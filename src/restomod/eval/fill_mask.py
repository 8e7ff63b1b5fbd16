"""Passages of held-out documents with one word hidden, and what a model guesses there.

In: held-out data sets, a seed. Out: the same passages every time, and the five likeliest tokens of
each. `restomod eval` and the evaluations of training (`train/evaluation.py`) call it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from restomod.data.dataset import Dataset
from restomod.data.random import keyed_generator
from restomod.data.tokenizer import Tokenizer
from restomod.model.encoder import MaskedLM

CONTEXT = 32
"""Tokens of a passage."""
GUESSES = 5
TRIES = 1000
"""Documents of a data set that are looked at, at most: many are too short."""


@dataclass(frozen=True)
class Passage:
    """[CLS], `CONTEXT` tokens of a document of which one is [MASK], and [SEP]."""

    domain: str
    ids: np.ndarray
    place: int
    """Of [MASK] in `ids`."""
    text: str
    expected: str
    """The token that [MASK] hides."""


def hidden_words(
    datasets: Iterable[Dataset], tokenizer: Tokenizer, seed: int, count: int
) -> list[Passage]:
    """Return up to `count` passages of each data set; the first ones do not depend on `count`."""
    passages: list[Passage] = []
    for dataset in datasets:
        found = _passages(dataset, tokenizer, seed)
        passages += [passage for _, passage in zip(range(count), found, strict=False)]
    return passages


def _passages(dataset: Dataset, tokenizer: Tokenizer, seed: int) -> Iterator[Passage]:
    generator = keyed_generator(seed, "fill_mask", dataset.name)
    shards = np.repeat(np.arange(len(dataset.shard_documents)), dataset.shard_documents)
    starts = np.cumsum(dataset.shard_documents) - dataset.shard_documents
    for document in generator.permutation(dataset.documents)[:TRIES].tolist():
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
        ids = np.concatenate([[tokenizer.cls_id], passage, [tokenizer.sep_id]])
        text = tokenizer.decode(passage.tolist())
        yield Passage(dataset.domain, ids, hidden + 1, text, expected)


@torch.no_grad()
def guess(model: MaskedLM, passages: list[Passage], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return `domain`, `text`, `expected` and `predictions` (token and probability, the likeliest
    first) of each passage; a causal model guesses from what comes before. All ranks that share a
    model call it."""
    if not passages:
        return []
    device = next(model.parameters()).device
    ids = torch.from_numpy(np.concatenate([passage.ids for passage in passages]))
    length = CONTEXT + 2
    bounds = torch.arange(0, len(ids) + 1, length, dtype=torch.int32)
    scores = model.logits(ids.to(device), bounds.to(device), length)
    places = torch.tensor([p.place - model.config.causal for p in passages])
    best = scores[(bounds[:-1] + places).to(device)].float().softmax(-1).topk(GUESSES)
    return [
        {
            "domain": passage.domain,
            "text": passage.text,
            "expected": passage.expected,
            "predictions": [
                {"token": tokenizer.decode([token]), "probability": probability}
                for token, probability in zip(tokens, probabilities, strict=True)
            ],
        }
        for passage, tokens, probabilities in zip(
            passages, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]


def _is_word(text: str) -> bool:
    return len(text.strip()) > 2 and text.strip().isalpha()
