"""The custom operator: RoPE and attention as one functional node with a fake and a gradient.

Operators that write into their inputs cannot have a gradient registered, and the kernels do; inside
one functional operator that does not matter, and torch.compile sees a single opaque node.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from restomod.model.attention.backends import BACKENDS
from restomod.model.attention.plan import AttentionPlan
from restomod.model.attention.spec import Spec
from restomod.model.flops import pairs


def attend(qkv: Tensor, plan: AttentionPlan, is_global: bool) -> Tensor:
    """Attend within documents: qkv [T, 3, H, K] -> [T, H, K]."""
    cos, sin = plan.rope_global if is_global else plan.rope_local
    left, right = plan.reach_global if is_global else plan.reach_local
    out, _, _ = _attention(
        qkv,
        cos,
        sin,
        plan.cu_seqlens,
        None if is_global else plan.block_mask,
        plan.slopes,
        plan.max_seqlen,
        left,
        right,
        plan.backend,
        plan.deterministic,
    )
    return out


@torch.library.custom_op("restomod::attention", mutates_args=())
def _attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cu_seqlens: Tensor,
    block_mask: Tensor | None,
    slopes: Tensor | None,
    max_seqlen: int,
    left: int,
    right: int,
    backend: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    spec = Spec(cos, sin, cu_seqlens, block_mask, slopes, max_seqlen, left, right, deterministic)
    return BACKENDS[backend].forward(qkv, spec)


@_attention.register_fake
def _(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cu_seqlens: Tensor,
    block_mask: Tensor | None,
    slopes: Tensor | None,
    max_seqlen: int,
    left: int,
    right: int,
    backend: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = BACKENDS[backend].saved_shapes(tuple(qkv.shape), left, right, cos.shape[1] > 0)
    dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    out = qkv.new_empty(qkv.shape[0], *qkv.shape[2:])
    return out, qkv.new_empty(shapes[0], dtype=dtype), qkv.new_empty(shapes[1])


@torch.library.custom_op("restomod::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    kept: Tensor,
    cos: Tensor,
    sin: Tensor,
    cu_seqlens: Tensor,
    block_mask: Tensor | None,
    slopes: Tensor | None,
    max_seqlen: int,
    left: int,
    right: int,
    backend: str,
    deterministic: bool,
) -> Tensor:
    spec = Spec(cos, sin, cu_seqlens, block_mask, slopes, max_seqlen, left, right, deterministic)
    return BACKENDS[backend].backward(grad, qkv, out, logsumexp, kept, spec)


@_attention_backward.register_fake
def _(grad: Tensor, qkv: Tensor, *rest: Any) -> Tensor:
    return grad.new_empty(grad.shape[0], 3, *grad.shape[1:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, cos, sin, cu_seqlens, block_mask, slopes, *ctx.settings = inputs
    if not BACKENDS[ctx.settings[3]].needs_input:
        qkv = qkv.new_empty(0)
    ctx.save_for_backward(qkv, *output, cos, sin, cu_seqlens, block_mask, slopes)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros of every output's size in the backward pass


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    grad_qkv = _attention_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return grad_qkv, *[None] * 10


_attention.register_autograd(_backward, setup_context=_setup_context)


# FlopCounterMode does not see into an operator.
@register_flop_formula(torch.ops.restomod.attention, get_raw=True)
def _flops(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cu_seqlens: Tensor,
    block_mask: Tensor | None,
    slopes: Tensor | None,
    max_seqlen: int,
    left: int,
    right: int,
    *rest: Any,
    **unused: Any,
) -> int:
    lengths = [end - start for start, end in itertools.pairwise(cu_seqlens.tolist())]
    products = 2 * 2 * qkv.shape[2] * qkv.shape[3]  # scores, and the mix of values
    return int(products * sum(pairs(length, left, right) for length in lengths))


@register_flop_formula(torch.ops.restomod.attention_backward, get_raw=True)
def _backward_flops(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    kept: Tensor,
    *rest: Any,
    **unused: Any,
) -> int:
    return 2 * _flops(grad[:, None], *rest)
