"""Softmax cross-entropy of a piece of the logits, which it turns into their gradient in place.

Shapes: m rows of logits, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from restomod.kernels import use_triton
from restomod.kernels.triton import jit, next_power_of_2, tl

IGNORED = -100
_PIECE = 1 << 21
"""Logits that the CPU takes at a time, so that its passes over them stay in cache."""


def softmax_cross_entropy_(
    logits: Tensor, labels: Tensor, z_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, log-partition (both [m], float32 or wider) and whether the best guess is right.

    Overwrites logits [m, V] with the gradient of loss + z_weight x log-partition^2. Rows labelled
    -100 have loss, gradient and right guesses of zero.
    """
    if use_triton(logits):
        return _launch(logits, labels, z_weight)
    return softmax_cross_entropy_reference_(logits, labels, z_weight)


def softmax_cross_entropy_reference_(
    logits: Tensor, labels: Tensor, z_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `softmax_cross_entropy_` with plain operations."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    loss = logits.new_zeros(len(labels), dtype=wide)
    partition = torch.zeros_like(loss)
    correct = torch.zeros_like(labels, dtype=torch.bool)
    rows = max(1, _PIECE // logits.shape[1]) if logits.device.type == "cpu" else len(labels)
    for start in range(0, len(labels), max(rows, 1)):
        piece = slice(start, start + rows)
        loss[piece], partition[piece], correct[piece] = _piece(
            logits[piece], labels[piece], z_weight, wide
        )
    return loss, partition, correct


def _piece(
    logits: Tensor, labels: Tensor, z_weight: float, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    kept = labels != IGNORED
    target = labels.where(kept, 0)[:, None]
    best, guess = logits.max(dim=1, keepdim=True)
    own = logits.gather(1, target).to(wide)
    x = logits if logits.dtype == wide else logits.to(wide)
    x.sub_(best).exp_()
    total = x.sum(1, keepdim=True)
    partition = total.log() + best.to(wide)
    # Softmax times (1 + 2 z log-partition), less one at the label; nothing in ignored rows.
    x.mul_((1 + 2 * z_weight * partition) * kept[:, None] / total)
    x.scatter_add_(1, target, -kept[:, None].to(wide))
    if x is not logits:
        logits.copy_(x)
    loss = (partition - own).squeeze(1) * kept
    return loss, partition.squeeze(1), (guess.squeeze(1) == labels) & kept


def cross_entropy_launch(vocabulary: int) -> dict[str, Any]:
    """Return the constants of a launch; the grid has a program per row."""
    block = min(4096, next_power_of_2(vocabulary))
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 16)}


def _launch(logits: Tensor, labels: Tensor, z_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    rows, vocabulary = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("the kernel takes logits whose rows are contiguous")
    loss, partition = logits.new_empty(2, rows, dtype=torch.float32).unbind()
    correct = torch.empty_like(labels, dtype=torch.bool)
    if rows:
        cross_entropy_kernel[(rows,)](
            logits,
            labels,
            loss,
            partition,
            correct,
            z_weight,
            vocabulary,
            logits.stride(0),
            **cross_entropy_launch(vocabulary),
        )
    return loss, partition, correct


@jit
def cross_entropy_kernel(
    logits,
    labels,
    loss_out,
    partition_out,
    correct_out,
    z_weight,
    vocabulary,
    stride,
    BLOCK: tl.constexpr,
):
    """Reduce one row, then overwrite it: two reads and a write of the logits."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    kept = label != -100
    target = tl.where(kept, label, 0)
    start = logits + row * stride
    # Before the loop, whose reductions all warps wait for: after it, another one may have written.
    own = tl.load(start + target).to(tl.float32)
    best = -float("inf")
    total = 0.0
    guess = 0
    for first in range(0, vocabulary, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        x = tl.load(start + columns, mask=columns < vocabulary, other=-float("inf"))
        x = x.to(tl.float32)
        block_best = tl.max(x, 0)
        block_guess = first + tl.argmax(x, 0)
        guess = tl.where(block_best > best, block_guess, guess)
        higher = tl.maximum(best, block_best)
        total = total * tl.exp(best - higher) + tl.sum(tl.exp(x - higher), 0)
        best = higher
    partition = tl.log(total) + best
    tl.store(loss_out + row, tl.where(kept, partition - own, 0.0))
    tl.store(partition_out + row, partition)
    tl.store(correct_out + row, kept & (guess == label))
    scale = tl.where(kept, 1.0 + 2.0 * z_weight * partition, 0.0)
    for first in range(0, vocabulary, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        mask = columns < vocabulary
        x = tl.load(start + columns, mask=mask, other=-float("inf")).to(tl.float32)
        grad = scale * tl.exp(x - partition) - tl.where(kept & (columns == target), 1.0, 0.0)
        tl.store(start + columns, grad.to(logits.dtype.element_ty), mask=mask)
