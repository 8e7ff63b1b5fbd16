"""Softmax cross-entropy of a piece of the logits, which it turns into their gradient in place.

Shapes: m rows of logits, V vocabulary.
"""

import torch
from torch import Tensor

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
    wide = torch.promote_types(logits.dtype, torch.float32)
    loss = logits.new_zeros(len(labels), dtype=wide)
    partition = torch.zeros_like(loss)
    correct = torch.zeros_like(labels, dtype=torch.bool)
    rows = max(1, _PIECE // logits.shape[1]) if logits.device.type == "cpu" else len(labels)
    for start in range(0, len(labels), max(rows, 1)):
        piece = slice(start, start + rows)
        loss[piece], partition[piece], correct[piece] = _reference(
            logits[piece], labels[piece], z_weight, wide
        )
    return loss, partition, correct


def _reference(
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
