"""Decoder and cross-entropy in one, by rows, so that the [M, V] logits never exist whole.

Enters: the head's features and the labels. Leaves: sums over the labels that count, and, made in
the same pass, the gradients: a piece's logits are turned into their gradient in place and
multiplied out before the next piece's are computed. The backward pass only scales them.

Shapes: M predicted positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from restomod.kernels.cross_entropy import softmax_cross_entropy_

IGNORED = -100
"""The label of a position that has no prediction to make."""


class LossSums(NamedTuple):
    """Sums over the labels that are not IGNORED."""

    objective: Tensor
    """Cross-entropy plus z_loss x squared log-partition: what is minimised (float32)."""
    loss: Tensor
    """Cross-entropy, in nats (float32; no gradient)."""
    correct: Tensor
    """Predictions that were right (int64)."""
    predictions: Tensor
    """Number of these labels (int64)."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    z_loss: float,
    logits_mb: int,
) -> LossSums:
    """Score hidden [M, D] against weight [V, D] and bias [V], and sum the loss on labels [M] int64.

    Under autocast the products are computed in its dtype; gradients of weight and bias are summed
    in theirs. At most `logits_mb` MB of logits exist at a time (one row's at least).
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    rows = max(1, logits_mb * 10**6 // (weight.shape[0] * dtype.itemsize))
    gradients = torch.is_grad_enabled()
    objective, loss, correct, count, *_ = _linear_cross_entropy(
        hidden.to(dtype), weight, bias, labels, z_loss, rows, gradients
    )
    return LossSums(objective, loss, correct, count)


@torch.library.custom_op("restomod::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    z_loss: float,
    rows: int,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return objective, loss, correct, count, and the objective's gradients of hidden, weight and
    bias (empty where they are not wanted)."""
    positions, _ = hidden.shape
    wide = torch.promote_types(hidden.dtype, torch.float32)
    objective, loss = hidden.new_zeros(2, dtype=wide).unbind()
    correct = labels.new_zeros(())
    grad_hidden = torch.empty_like(hidden) if gradients else hidden.new_empty(0)
    grad_weight = torch.zeros_like(weight) if gradients else hidden.new_empty(0)
    grad_bias = torch.zeros_like(bias) if gradients and bias is not None else hidden.new_empty(0)
    with torch.autocast(hidden.device.type, enabled=False):
        decoder = weight.to(hidden.dtype)
        addend = None if bias is None else bias.to(hidden.dtype)
        for start in range(0, positions, rows):
            piece = slice(start, start + rows)
            x = hidden[piece]
            logits = x @ decoder.T if addend is None else torch.addmm(addend, x, decoder.T)
            losses, partition, right = softmax_cross_entropy_(logits, labels[piece], z_loss)
            squares = partition.square() * (labels[piece] != IGNORED)
            loss = loss + losses.sum(dtype=wide)
            objective = objective + (losses + z_loss * squares).sum(dtype=wide)
            correct = correct + right.sum()
            if gradients:
                torch.mm(logits, decoder, out=grad_hidden[piece])
                if weight.dtype == logits.dtype:
                    grad_weight.addmm_(logits.T, x)
                else:
                    grad_weight.add_(logits.T @ x)
                if bias is not None:
                    grad_bias.add_(logits.sum(0, dtype=wide))
            del logits  # before the next piece's
    count = (labels != IGNORED).sum()
    # An operator's outputs must not share memory.
    return (
        objective.clone(),
        loss.clone(),
        correct.clone(),
        count,
        grad_hidden,
        grad_weight,
        grad_bias,
    )


@_linear_cross_entropy.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    z_loss: float,
    rows: int,
    gradients: bool,
) -> tuple[Tensor, ...]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    nothing = hidden.new_empty(0)
    return (
        hidden.new_empty((), dtype=wide),
        hidden.new_empty((), dtype=wide),
        labels.new_empty(()),
        labels.new_empty(()),
        torch.empty_like(hidden) if gradients else nothing,
        torch.empty_like(weight) if gradients else hidden.new_empty(0),
        torch.empty_like(bias) if gradients and bias is not None else hidden.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.has_bias = inputs[2] is not None
    ctx.save_for_backward(*output[4:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros of every output's size in the backward pass


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    grads = [part * grad.to(part.dtype) for part in ctx.saved_tensors]
    return grads[0], grads[1], grads[2] if ctx.has_bias else None, None, None, None, None


_linear_cross_entropy.register_autograd(_backward, setup_context=_setup_context)


# FlopCounterMode does not see into an operator.
@register_flop_formula(torch.ops.restomod.linear_cross_entropy, get_raw=True)
def _flops(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    z_loss: float,
    rows: int,
    gradients: bool,
    **unused: Any,
) -> int:
    return (3 if gradients else 1) * 2 * hidden.shape[0] * weight.numel()
