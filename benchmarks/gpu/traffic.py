"""Bytes that our elementwise kernels must move for a token (docs/kernels.md), in bf16 with the
stream between layers in float32."""

from __future__ import annotations


def rope(hidden: int, heads: int) -> float:
    """Queries and keys read and written; cosines and sines read."""
    return 8 * hidden + 4 * hidden // heads


def sum_and_norm(hidden: int) -> tuple[float, float]:
    """Forward and backward."""
    return 12 * hidden + 8, 16 * hidden + 8


def glu(inner: int) -> tuple[float, float]:
    """Forward and backward."""
    return 6 * inner, 10 * inner


def cross_entropy(vocabulary: int) -> float:
    """For a predicted token: its logits read twice and written once."""
    return 6 * vocabulary
