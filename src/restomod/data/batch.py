"""Rows to the tensors that the model sees. All shapes are constants of the phase.

T = rows x row_tokens. A micro-batch is a dict of

    input_ids         [T] int64
    position_ids      [T] int32, position within the document
    cu_seqlens        [Dmax + 1] int32, document bounds; the unused end repeats T
    max_seqlen        the phase's sequence length
    masked_positions  [M] int64, from where tokens are predicted; padded with 0
    labels            [M] int64, the tokens to predict; padded with -100
    row_ids           [rows] int64, the rows' numbers in the run

with M = ceil(rate x T + 6 standard deviations), or T where next tokens are predicted. A row's
padding tail is cut into segments no longer than max_seqlen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from restomod.config import DataConfig, PhaseConfig
from restomod.data.mlm import IGNORED, predicted_slots
from restomod.data.rows import Row

Batch = dict[str, Any]


def document_slots(phase: PhaseConfig, data: DataConfig) -> int:
    """Return the most segments of a row: documents, and pieces of its padding tail."""
    tail = -(-phase.row_tokens // phase.sequence_length)
    return phase.row_tokens // data.tokens_per_document_min + tail


def collate(rows: list[Row], phase: PhaseConfig, data: DataConfig, pin_memory: bool) -> Batch:
    """Return the micro-batch of these rows."""
    row_tokens = phase.row_tokens
    slots = len(rows) * row_tokens
    room = predicted_slots(slots, phase)
    bounds = [np.zeros(1, np.int64)]
    positions, labels = np.zeros(room, np.int64), np.full(room, IGNORED, np.int64)
    masked = 0
    for n, row in enumerate(rows):
        bounds.append(row.cu_seqlens[1:].astype(np.int64) + n * row_tokens)
        tail = np.arange(row.cu_seqlens[-1], row_tokens, phase.sequence_length)[1:]
        bounds.append(np.append(tail, row_tokens) + n * row_tokens)
        begin, masked = masked, masked + len(row.positions)
        if masked > room:
            raise RuntimeError(f"{masked} masked tokens exceed the batch's room for {room}")
        positions[begin:masked] = row.positions.astype(np.int64) + n * row_tokens
        labels[begin:masked] = row.labels
    ends = np.unique(np.concatenate(bounds))
    cu_seqlens = np.full(len(rows) * document_slots(phase, data) + 1, slots, np.int32)
    cu_seqlens[: len(ends)] = ends
    position_ids = np.arange(slots) - np.repeat(ends[:-1], np.diff(ends))
    tensors = {
        "input_ids": torch.from_numpy(np.concatenate([row.input_ids for row in rows])).long(),
        "position_ids": torch.from_numpy(position_ids.astype(np.int32)),
        "cu_seqlens": torch.from_numpy(cu_seqlens),
        "masked_positions": torch.from_numpy(positions),
        "labels": torch.from_numpy(labels),
        "row_ids": torch.tensor([row.number for row in rows]),
    }
    if pin_memory:
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {**tensors, "max_seqlen": phase.sequence_length}
