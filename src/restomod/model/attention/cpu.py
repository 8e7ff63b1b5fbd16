"""Attention on the CPU: torch's CPU flash kernel, fed document by document or block by block.

Global layers attend per document. Local layers attend in fixed blocks of queries against the keys
within reach, under a mask that is made once per batch, so that their cost is linear in T.

Shapes: T tokens, H heads, K head dim, B blocks of queries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from restomod.model.attention.reference import document_bounds, score_bias
from restomod.model.attention.spec import Spec
from restomod.model.config import BLOCK
from restomod.model.flops import UNLIMITED
from restomod.model.rope import rotate_into

BIASED_QUERIES = 256
"""Queries that global layers with ALiBi take at a time: the bias is [H, queries, document]."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Cpu:
    """The CPU kernel."""

    name = "cpu"
    alibi = True
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    device = "cpu"
    head_sizes = range(1, 1 << 20)
    needs_input = False

    def missing(self) -> str:
        return ""

    def forward(self, qkv: Tensor, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
        # `packed` holds queries, keys and values; in local layers between margins of zeros, so that
        # every block has its full reach.
        shapes = self.saved_shapes(tuple(qkv.shape), spec.left, spec.right, True)
        packed = qkv.new_empty(shapes[1])
        inner = _inner(packed, qkv.shape[0], spec)
        rotate_into(inner[:, :2], qkv[:, :2], spec.cos, spec.sin)
        inner[:, 2] = qkv[:, 2]
        if spec.is_local:
            packed[:, : spec.left].zero_()
            packed[:, spec.left + qkv.shape[0] :].zero_()
            return _local(packed, qkv.shape[0], spec)
        out = qkv.new_empty(qkv.shape[0], *qkv.shape[2:])
        wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
        logsumexp = qkv.new_empty(shapes[0], dtype=wide)
        for queries, keys, options in _pieces(spec, qkv.dtype):
            q = packed[0, None, queries].transpose(1, 2)
            k, v = (x[None, keys].transpose(1, 2) for x in packed[1:])
            result, lse = _flash(q, k, v, **options)
            out[queries] = result[0].transpose(0, 1)
            logsumexp[queries] = lse[0].transpose(0, 1)
        return out, logsumexp, packed

    def backward(
        self, grad: Tensor, qkv: Tensor, out: Tensor, logsumexp: Tensor, kept: Tensor, spec: Spec
    ) -> Tensor:
        backward = _local_backward if spec.is_local else _global_backward
        inner = _inner(backward(grad, out, logsumexp, kept, spec), out.shape[0], spec)
        grad_qkv = out.new_empty(out.shape[0], 3, *out.shape[1:])
        rotate_into(grad_qkv[:, :2], inner[:, :2], spec.cos, -spec.sin)
        grad_qkv[:, 2] = inner[:, 2]
        return grad_qkv

    def saved_shapes(
        self, qkv_shape: tuple[int, ...], left: int, right: int, rotated: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        tokens, _, heads, head_size = qkv_shape
        if left == UNLIMITED:
            return (tokens, heads), (3, tokens, heads, head_size)
        slots = -(-tokens // BLOCK) * BLOCK
        return (slots, heads), (3, left + slots + right, heads, head_size)


def block_mask(
    cu_seqlens: Tensor,
    tokens: int,
    left: int,
    right: int,
    slopes: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return [B, 1 or H, BLOCK, BLOCK + left + right]: what is added to the scores of local layers,
    -inf where a query does not see a key."""
    blocks = -(-tokens // BLOCK)
    slots = torch.arange(-left, blocks * BLOCK + right)
    document = torch.searchsorted(cu_seqlens.to(slots.dtype), slots, right=True)
    reach = BLOCK + left + right
    keys = document.as_strided((blocks, 1, reach), (BLOCK, 1, 1))
    queries = document[left:].as_strided((blocks, BLOCK, 1), (BLOCK, 1, 1), left)
    offset = torch.arange(reach) - left - torch.arange(BLOCK)[:, None]
    near = (offset >= -left) & (offset <= right)
    # Slots past the last token form a document of their own: no query is left without a key.
    seen = (queries == keys) & near
    bias = torch.zeros(1, BLOCK, reach, dtype=dtype)
    if slopes is not None:
        bias = -slopes.to(dtype)[:, None, None] * offset.abs()
    return bias.expand(blocks, -1, -1, -1).masked_fill(~seen[:, None], float("-inf"))


def _inner(packed: Tensor, tokens: int, spec: Spec) -> Tensor:
    """View packed [3, left + slots + right, H, K] without its margins: [T, 3, H, K]."""
    margin = max(spec.left, 0)
    return packed[:, margin : margin + tokens].transpose(0, 1)


def _pieces(spec: Spec, dtype: torch.dtype) -> list[tuple[slice, slice, dict[str, Any]]]:
    """Return (queries, keys, options of the kernel) of each call that global layers make."""
    causal = spec.right == 0
    pieces: list[tuple[slice, slice, dict[str, Any]]] = []
    for start, end in document_bounds(spec.cu_seqlens):
        if spec.slopes is None:
            pieces.append((slice(start, end), slice(start, end), {"is_causal": causal}))
            continue
        positions = torch.arange(end - start)
        for first in range(start, end, BIASED_QUERIES):
            last = min(first + BIASED_QUERIES, end)
            bias = score_bias(positions[first - start : last - start], positions, spec, dtype)
            assert bias is not None
            pieces.append((slice(first, last), slice(start, end), {"attn_mask": bias[None]}))
    return pieces


def _global_backward(
    grad: Tensor, out: Tensor, logsumexp: Tensor, packed: Tensor, spec: Spec
) -> Tensor:
    grad_packed = torch.zeros_like(packed) if spec.slopes is not None else torch.empty_like(packed)
    for queries, keys, options in _pieces(spec, out.dtype):
        q = packed[0, None, queries].transpose(1, 2)
        k, v = (x[None, keys].transpose(1, 2) for x in packed[1:])
        grad_out, result = (x[None, queries].transpose(1, 2) for x in (grad, out))
        lse = logsumexp[None, queries].transpose(1, 2)
        causal = options.pop("is_causal", False)
        parts = _flash_backward(grad_out, q, k, v, result, lse, 0.0, causal, **options)
        grad_packed[0, queries] = parts[0][0].transpose(0, 1)
        for i in (1, 2):
            part = parts[i][0].transpose(0, 1)
            if spec.slopes is not None:
                grad_packed[i, keys] += part
            else:
                grad_packed[i, keys] = part
    return grad_packed


def _local(packed: Tensor, tokens: int, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
    heads, head_size = packed.shape[2:]
    q, k, v = _blocks(packed, spec)
    result, lse = _flash(q, k, v, attn_mask=spec.block_mask)
    out = result.transpose(1, 2).reshape(-1, heads, head_size)
    return out[:tokens].contiguous(), lse.transpose(1, 2).reshape(-1, heads), packed


def _local_backward(
    grad: Tensor, out: Tensor, logsumexp: Tensor, packed: Tensor, spec: Spec
) -> Tensor:
    heads, head_size = out.shape[1:]
    q, k, v = _blocks(packed, spec)
    grad_out, result = (_pad_to_blocks(x) for x in (grad, out))
    lse = logsumexp.view(-1, BLOCK, heads).transpose(1, 2)
    parts = _flash_backward(grad_out, q, k, v, result, lse, 0.0, False, attn_mask=spec.block_mask)
    grad_packed = torch.empty_like(packed)
    queries = grad_packed[0, spec.left : grad_packed.shape[1] - spec.right]
    queries.copy_(parts[0].transpose(1, 2).reshape(-1, heads, head_size))
    for i in (1, 2):
        _overlap_add(grad_packed[i], parts[i].transpose(1, 2))
    return grad_packed


def _blocks(packed: Tensor, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
    """View packed [3, left + B BLOCK + right, H, K] as blocks.

    Queries are [B, H, BLOCK, K]; keys and values [B, H, BLOCK + left + right, K], and overlap.
    """
    _, padded, heads, head_size = packed.shape
    blocks = (padded - spec.left - spec.right) // BLOCK
    row, head, _ = packed.stride()[1:]
    strides = (BLOCK * row, head, row, 1)
    reach = (blocks, heads, BLOCK + spec.left + spec.right, head_size)
    queries = packed[0, spec.left :].as_strided((blocks, heads, BLOCK, head_size), strides)
    keys, values = (x.as_strided(reach, strides, x.storage_offset()) for x in packed[1:].unbind(0))
    return queries, keys, values


def _pad_to_blocks(x: Tensor) -> Tensor:
    """View or copy x [T, H, K] as [B, H, BLOCK, K]."""
    missing = -x.shape[0] % BLOCK
    if missing:
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
    return x.reshape(-1, BLOCK, *x.shape[1:]).transpose(1, 2)


def _overlap_add(out: Tensor, parts: Tensor) -> None:
    """Sum parts [B, BLOCK + left + right, H, K], each BLOCK further on, to out [.., H, K]."""
    blocks, reach = parts.shape[:2]
    out.zero_()
    for start in range(0, reach, BLOCK):
        width = min(BLOCK, reach - start)
        row = out.stride(0)
        view = out[start:].as_strided(
            (blocks, width, *out.shape[1:]),
            (BLOCK * row, *out.stride()),
            out.storage_offset() + start * row,
        )
        view.add_(parts[:, start : start + width])
