"""Residual sum and norm in one pass.

Shapes: T tokens in the packed batch, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from restomod.kernels import use_triton
from restomod.kernels.triton import jit, next_power_of_2, tl

PROGRAMS = 528
"""Of the backward pass, each of which sums the weights' gradients over its tokens: four for each
multiprocessor of an H100."""


def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool
) -> tuple[Tensor, Tensor]:
    """Return h = x + residual [T, D], and h normalised by LayerNorm or RMSNorm.

    Arithmetic is float32. Under autocast the normalised h has its dtype, since matrix products are
    all that reads it; the sum has the wider dtype of x and residual.
    """
    if use_triton(x):
        return _AddNorm.apply(x, residual, weight, bias, eps, rms)
    return add_norm_reference(x, residual, weight, bias, eps, rms)


def add_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool
) -> tuple[Tensor, Tensor]:
    """Compute `add_norm` with plain operations."""
    h = x + residual
    if rms:
        normed = F.rms_norm(h.float(), h.shape[-1:], weight.float(), eps)
    else:
        normed = F.layer_norm(
            h.float(), h.shape[-1:], weight.float(), None if bias is None else bias.float(), eps
        )
    return h, normed.to(_normed_dtype(h))


def norm_launch(size: int, has_bias: bool, rms: bool) -> dict[str, Any]:
    """Return the constants of both kernels; a program takes whole tokens."""
    block = next_power_of_2(size)
    return {
        "SIZE": size,
        "BLOCK": block,
        "BIAS": has_bias,
        "RMS": rms,
        "num_warps": min(max(block // 256, 1), 16),
    }


def _normed_dtype(h: Tensor) -> torch.dtype:
    device = h.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        rms: bool,
    ) -> tuple[Tensor, Tensor]:
        x, residual = x.contiguous(), residual.contiguous()
        tokens, size = x.shape
        h = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))
        normed = torch.empty_like(h, dtype=_normed_dtype(h))
        mean, scale = x.new_empty(2, tokens, dtype=torch.float32).unbind()
        ctx.launch = norm_launch(size, bias is not None, rms)
        pointers = (x, residual, weight, weight if bias is None else bias, h, normed, mean, scale)
        add_norm_kernel[(tokens,)](*pointers, eps, **ctx.launch)
        ctx.save_for_backward(h, weight, mean, scale)
        ctx.dtypes = x.dtype, residual.dtype
        return h, normed

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_normed: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, mean, scale = ctx.saved_tensors
        tokens, size = h.shape
        programs = min(PROGRAMS, tokens)
        grad = torch.empty_like(h)
        narrow = [dtype for dtype in ctx.dtypes if dtype != h.dtype]
        copy = torch.empty_like(h, dtype=narrow[0]) if narrow else grad
        sums = h.new_empty(2 if ctx.launch["BIAS"] else 1, programs, size, dtype=torch.float32)
        add_norm_backward_kernel[(programs,)](
            h,
            weight,
            mean,
            scale,
            grad_h.contiguous(),
            grad_normed.contiguous(),
            grad,
            copy,
            sums,
            tokens,
            programs,
            COPY=bool(narrow),
            **ctx.launch,
        )
        totals = sums.sum(1).to(weight.dtype)
        grad_bias = totals[1] if ctx.launch["BIAS"] else None
        grads = [grad if dtype == h.dtype else copy for dtype in ctx.dtypes]
        return *grads, totals[0], grad_bias, None, None


@jit
def add_norm_kernel(
    x,
    residual,
    weight,
    bias,
    h_out,
    normed_out,
    mean_out,
    scale_out,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
    RMS: tl.constexpr,
):
    """Add and normalise one token."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < SIZE
    place = token * SIZE + columns
    h = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    h += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    h = h.to(h_out.dtype.element_ty)
    tl.store(h_out + place, h, mask=mask)
    h = h.to(tl.float32)
    if RMS:
        mean = 0.0
        centred = h
    else:
        mean = tl.sum(h, 0) / SIZE
        centred = tl.where(mask, h - mean, 0.0)
        tl.store(mean_out + token, mean)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / SIZE + eps)
    tl.store(scale_out + token, scale)
    y = centred * scale * tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(normed_out + place, y.to(normed_out.dtype.element_ty), mask=mask)


@jit
def add_norm_backward_kernel(
    h_in,
    weight,
    mean_in,
    scale_in,
    grad_h,
    grad_normed,
    grad_out,
    copy_out,
    sums,
    tokens,
    programs,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
    RMS: tl.constexpr,
    COPY: tl.constexpr,
):
    """Go through every `programs`-th token; sum the gradients of weight and bias on the way. COPY
    writes the gradient a second time, in the dtype of the narrower summand."""
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    mask = columns < SIZE
    w = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    bias_sum = tl.zeros((BLOCK,), tl.float32)
    for token in range(program, tokens, programs):
        place = tl.cast(token, tl.int64) * SIZE + columns
        scale = tl.load(scale_in + token)
        normed = tl.load(h_in + place, mask=mask, other=0.0).to(tl.float32)
        if not RMS:
            normed = normed - tl.load(mean_in + token)
        normed = tl.where(mask, normed * scale, 0.0)
        g = tl.load(grad_normed + place, mask=mask, other=0.0).to(tl.float32)
        weight_sum += g * normed
        if BIAS:
            bias_sum += g
        g = g * w
        grad = g - normed * (tl.sum(g * normed, 0) / SIZE)
        if not RMS:
            grad -= tl.sum(g, 0) / SIZE
        grad = grad * scale + tl.load(grad_h + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_out + place, grad.to(grad_out.dtype.element_ty), mask=mask)
        if COPY:
            tl.store(copy_out + place, grad.to(copy_out.dtype.element_ty), mask=mask)
    tl.store(sums + program * SIZE + columns, weight_sum, mask=mask)
    if BIAS:
        tl.store(sums + (programs + program) * SIZE + columns, bias_sum, mask=mask)
