"""RoPE on the packed projection of queries, keys and values.

Shapes: T tokens in the packed batch, H heads, K head dim, R turned channels (R <= K).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from restomod.kernels import use_triton
from restomod.kernels.triton import jit, next_power_of_2, tl


def rope_qk(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return rotated copies of the queries and keys of qkv [T, 3, H, K] as [T, 2, H, K].

    cos and sin are float32 [T, R/2]; arithmetic is float32.
    """
    if not use_triton(qkv):
        return rope_qk_reference(qkv, cos, sin)
    out = qkv.new_empty(qkv.shape[0], 2, *qkv.shape[2:])
    _launch(qkv, out, cos, sin, forward=True)
    return out


def rope_qk_backward_(grad_qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn the gradients of queries and keys in grad_qkv [T, 3, H, K] back, in place."""
    if use_triton(grad_qkv):
        _launch(grad_qkv, grad_qkv, cos, sin, forward=False)
    else:
        grad_qkv[:, :2] = rope_qk_reference(grad_qkv, cos, -sin)


def rope_qk_reference(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute `rope_qk` with plain operations, in float32."""
    half = cos.shape[-1]
    x = qkv[:, :2].float()
    left, right, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    c, s = cos.float()[:, None, None], sin.float()[:, None, None]
    return torch.cat((left * c - right * s, right * c + left * s, rest), dim=-1).to(qkv.dtype)


def rope_launch(heads: int, head_size: int, half: int, forward: bool) -> dict[str, Any]:
    """Return the constants of a launch; the grid has a program per token."""
    rest = head_size - 2 * half
    return {
        "ROWS": 2 * heads,  # queries' and keys' heads lie one after the other
        "HALF": half,
        "REST": rest,
        "ROWS_UP": next_power_of_2(2 * heads),
        "HALF_UP": next_power_of_2(half),
        "REST_UP": next_power_of_2(max(rest, 1)),
        "SIGN": 1 if forward else -1,
        "COPY_REST": forward and rest > 0,
        "num_warps": 4,
    }


def _launch(x: Tensor, out: Tensor, cos: Tensor, sin: Tensor, forward: bool) -> None:
    heads, head_size = x.shape[2:]
    for tensor in (x, out, cos, sin):
        if not tensor.is_contiguous():
            raise ValueError("RoPE's kernel takes contiguous tensors")
    rope_kernel[(x.shape[0],)](
        x,
        out,
        cos,
        sin,
        x.stride(0),
        out.stride(0),
        **rope_launch(heads, head_size, cos.shape[1], forward),
    )


@jit
def rope_kernel(
    x,
    out,
    cos,
    sin,
    x_stride,
    out_stride,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    ROWS_UP: tl.constexpr,
    HALF_UP: tl.constexpr,
    REST_UP: tl.constexpr,
    SIGN: tl.constexpr,
    COPY_REST: tl.constexpr,
):
    """Turn the queries and keys of one token."""
    token = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, ROWS_UP)[:, None]
    columns = tl.arange(0, HALF_UP)[None, :]
    inside = columns < HALF
    c = tl.load(cos + token * HALF + columns, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + token * HALF + columns, mask=inside, other=0.0).to(tl.float32) * SIGN
    mask = (rows < ROWS) & inside
    place = rows * (2 * HALF + REST) + columns
    left = tl.load(x + token * x_stride + place, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(x + token * x_stride + place + HALF, mask=mask, other=0.0).to(tl.float32)
    turned = out + token * out_stride + place
    tl.store(turned, (left * c - right * s).to(out.dtype.element_ty), mask=mask)
    tl.store(turned + HALF, (right * c + left * s).to(out.dtype.element_ty), mask=mask)
    if COPY_REST:
        columns = tl.arange(0, REST_UP)[None, :]
        mask = (rows < ROWS) & (columns < REST)
        place = rows * (2 * HALF + REST) + 2 * HALF + columns
        kept = tl.load(x + token * x_stride + place, mask=mask)
        tl.store(out + token * out_stride + place, kept, mask=mask)
