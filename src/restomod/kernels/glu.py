"""The gate of a GLU.

Shapes: T tokens in the packed batch, I intermediate size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from restomod.kernels import use_triton
from restomod.kernels.triton import jit, next_power_of_2, tl


def glu(x: Tensor, activation: str) -> Tensor:
    """Return activation(value) * gate of x [T, 2I], value before gate: [T, I].

    activation is geglu (with the exact GELU) or swiglu; arithmetic is float32.
    """
    if use_triton(x):
        return _Glu.apply(x, activation)
    return glu_reference(x, activation)


def glu_reference(x: Tensor, activation: str) -> Tensor:
    """Compute `glu` with plain operations."""
    value, gate = x.chunk(2, dim=-1)
    return (F.gelu(value) if activation == "geglu" else F.silu(value)) * gate


def glu_launch(size: int, activation: str) -> dict[str, Any]:
    """Return the constants of a launch; the grid is tokens x ceil(size / BLOCK)."""
    return {
        "SIZE": size,
        "BLOCK": min(1024, next_power_of_2(size)),
        "GELU": activation == "geglu",
        "num_warps": 4,
    }


class _Glu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.launch = glu_launch(x.shape[1] // 2, activation)
        out = x.new_empty(x.shape[0], x.shape[1] // 2)
        glu_kernel[_grid(x, ctx.launch)](x, out, **ctx.launch)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        glu_backward_kernel[_grid(x, ctx.launch)](x, grad.contiguous(), grad_x, **ctx.launch)
        return grad_x, None


def _grid(x: Tensor, launch: dict[str, Any]) -> tuple[int, int]:
    return x.shape[0], -(-launch["SIZE"] // launch["BLOCK"])


@jit
def glu_kernel(x, out, SIZE: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr):
    """Gate one block of one token."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < SIZE
    value = tl.load(x + token * 2 * SIZE + columns, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + token * 2 * SIZE + SIZE + columns, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        active = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    else:
        active = value * tl.sigmoid(value)
    tl.store(out + token * SIZE + columns, (active * gate).to(out.dtype.element_ty), mask=mask)


@jit
def glu_backward_kernel(
    x, grad, grad_x, SIZE: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr
):
    """Compute the gradients of one block of one token's values and gates."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < SIZE
    place = token * 2 * SIZE + columns
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + place + SIZE, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + token * SIZE + columns, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        share = 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))
        active = value * share
        slope = share + value * tl.exp(-0.5 * value * value) * 0.3989422804014327
    else:
        share = tl.sigmoid(value)
        active = value * share
        slope = share * (1.0 + value * (1.0 - share))
    tl.store(grad_x + place, (g * gate * slope).to(grad_x.dtype.element_ty), mask=mask)
    tl.store(grad_x + place + SIZE, (g * active).to(grad_x.dtype.element_ty), mask=mask)
