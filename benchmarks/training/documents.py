"""Models' shapes and made batches for the benchmarks of training, packed and padded."""

from __future__ import annotations

from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from restomod.model.config import EncoderConfig

SIZES = {
    "tiny": (2, 64, 2, 96, 512),
    "5m": (6, 96, 3, 144, 50_368),
    "17m": (7, 256, 4, 384, 50_368),
    "32m": (10, 384, 6, 576, 50_368),
    "150m": (22, 768, 12, 1152, 50_368),
    "395m": (28, 1024, 16, 2624, 50_368),
}
"""Layers, hidden size, heads, intermediate size, vocabulary; 17m and 32m are Ettin's, 150m and 395m
ModernBERT's."""
KINDS = {"short": (16, 1024), "full": (8, 1024), "long": (1, 8192)}
"""Documents a batch, and the longest."""
MASK_RATE = 0.3
PAD, MASK = 0, 3
Lengths = list[int]


def encoder_config(size: str, longest: int = 8192, **values: Any) -> EncoderConfig:
    """Return the shape of that name."""
    layers, hidden_size, heads, intermediate_size, vocab_size = SIZES[size]
    return EncoderConfig(
        layers=layers,
        hidden_size=hidden_size,
        heads=heads,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        max_sequence_length=longest,
        pad_id=PAD,
        cls_id=1,
        sep_id=2,
        **values,
    )


def batches_of(kind: str, batches: int, times: float = 1) -> list[Lengths]:
    """Return the documents' lengths of every batch, `times` as many as KINDS has."""
    size, longest = KINDS[kind]
    size = max(1, round(size * times))
    if kind != "short":
        return [[longest] * size] * batches
    generator = torch.Generator().manual_seed(0)
    drawn = torch.empty(batches, size).log_normal_(5.3, 0.9, generator=generator)
    return drawn.long().clamp(2, longest).tolist()


def rows_of(batches: list[Lengths]) -> list[Lengths]:
    """Return the same documents in as many rows of one length; those on an edge are cut in two."""
    bounds = set(accumulate(chain(*batches)))
    row = -(-max(bounds) // len(batches))
    edges = sorted(bounds | {row * n for n in range(1, len(batches) + 1)})
    pieces: list[Lengths] = [[] for _ in batches]
    for start, end in zip([0, *edges[:-1]], edges, strict=True):
        pieces[start // row].append(end - start)
    return pieces


def words(
    lengths: Lengths, vocab_size: int, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return token ids [T], and labels [T]: -100 where nothing is masked."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, vocab_size, (sum(lengths),), generator=generator)
    masked = torch.rand(ids.shape, generator=generator) < MASK_RATE
    return ids.masked_fill(masked, MASK).to(device), ids.masked_fill(~masked, -100).to(device)


def padded(
    lengths: Lengths, vocab_size: int, seed: int, longest: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return token ids and labels [documents, longest], a document a row."""
    ids, labels = (x.split(lengths) for x in words(lengths, vocab_size, seed, device))
    columns = [
        torch.stack([F.pad(part, (0, longest - len(part)), value=value) for part in parts])
        for parts, value in ((ids, PAD), (labels, -100))
    ]
    return columns[0], columns[1]
