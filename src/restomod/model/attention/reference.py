"""The plain reference: dense scores, document by document, on any device and in any dtype.

The other kernels are tested against it; it runs where none of them can (float32 on CUDA).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from restomod.model.attention.spec import Spec
from restomod.model.flops import UNLIMITED
from restomod.model.rope import rotate


def document_bounds(cu_seqlens: Tensor) -> list[tuple[int, int]]:
    """Return (start, end) of every document that is not empty; syncs on CUDA."""
    return [(a, b) for a, b in itertools.pairwise(cu_seqlens.tolist()) if a < b]


def score_bias(queries: Tensor, keys: Tensor, spec: Spec, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to the scores of queries at positions [Q] and keys at [S] of a document:
    [1 or H, Q, S], -inf out of reach; None where nothing is."""
    offset = keys - queries[:, None]
    bias = None
    if spec.slopes is not None:
        bias = -spec.slopes.to(dtype)[:, None, None] * offset.abs()
    for far in (
        offset < -spec.left if spec.left != UNLIMITED else None,
        offset > spec.right if spec.right != UNLIMITED else None,
    ):
        if far is not None:
            bias = offset.new_zeros((1, *offset.shape), dtype=dtype) if bias is None else bias
            bias = bias.masked_fill(far, float("-inf"))
    return bias


class Reference:
    """softmax(q k^T / sqrt(K) + bias) v, and its gradient by the formula."""

    name = "reference"
    alibi = True
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    device = "any"
    head_sizes = range(1, 1 << 20)
    needs_input = True

    def missing(self) -> str:
        return ""

    def forward(self, qkv: Tensor, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
        out = qkv.new_empty(qkv.shape[0], *qkv.shape[2:])
        for start, end in document_bounds(spec.cu_seqlens):
            _, _, value, weights = _weights(qkv, spec, start, end)
            out[start:end] = (weights @ value).transpose(0, 1)
        wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
        return out, qkv.new_empty(0, dtype=wide), qkv.new_empty(0)

    def backward(
        self, grad: Tensor, qkv: Tensor, out: Tensor, logsumexp: Tensor, kept: Tensor, spec: Spec
    ) -> Tensor:
        grad_qkv = torch.empty_like(qkv)
        scale = qkv.shape[-1] ** -0.5
        for start, end in document_bounds(spec.cu_seqlens):
            query, key, value, weights = _weights(qkv, spec, start, end)
            grad_out = grad[start:end].transpose(0, 1)
            grad_weights = grad_out @ value.transpose(1, 2)
            inner = (grad_weights * weights).sum(-1, keepdim=True)
            grad_scores = weights * (grad_weights - inner) * scale
            parts = torch.stack(
                [
                    grad_scores @ key,
                    grad_scores.transpose(1, 2) @ query,
                    weights.transpose(1, 2) @ grad_out,
                ]
            )
            grad_qkv[start:end] = parts.permute(2, 0, 1, 3)
        grad_qkv[:, :2] = rotate(grad_qkv[:, :2], spec.cos, -spec.sin)
        return grad_qkv

    def saved_shapes(
        self, qkv_shape: tuple[int, ...], left: int, right: int, rotated: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (0,), (0,)


def _weights(
    qkv: Tensor, spec: Spec, start: int, end: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return q, k, v [H, S, K] and the attention weights [H, S, S] of one document."""
    turned = rotate(qkv[start:end, :2], spec.cos[start:end], spec.sin[start:end])
    query, key = turned.permute(1, 2, 0, 3)
    value = qkv[start:end, 2].transpose(0, 1)
    scores = query @ key.transpose(1, 2) * qkv.shape[-1] ** -0.5
    positions = torch.arange(end - start, device=qkv.device)
    bias = score_bias(positions, positions, spec, scores.dtype)
    return query, key, value, (scores if bias is None else scores + bias).softmax(-1)
