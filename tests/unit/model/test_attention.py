"""Packed attention against dense attention under a mask, in float64."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from restomod.model.attention import BLOCK, Documents, attention, reference_attention
from restomod.model.rope import rope_tables, rotate, rotate_into

HEADS, HEAD_SIZE = 2, 8


def packed(lengths: list[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """qkv, cos, sin and cu_seqlens of random documents; zeros are empty documents."""
    tokens = sum(lengths)
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(tokens, 3, HEADS, HEAD_SIZE, generator=generator, dtype=dtype)
    positions = torch.cat([torch.arange(length) for length in lengths])
    cos, sin = rope_tables(positions, HEAD_SIZE, 100.0, dtype)
    return qkv, cos, sin, torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def dense(qkv: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, window: int | None) -> Tensor:
    """One matrix of scores over the whole batch, written without any of the code under test."""
    half = HEAD_SIZE // 2
    c, s = cos[:, None].repeat(1, 1, 2), sin[:, None].repeat(1, 1, 2)
    q, k = (
        x * c + torch.cat((-x[..., half:], x[..., :half]), -1) * s for x in (qkv[:, 0], qkv[:, 1])
    )
    slots = torch.arange(len(qkv))
    document = (slots[:, None] >= cu_seqlens[None, 1:]).sum(1)
    seen = document[:, None] == document
    if window is not None:
        seen &= (slots[:, None] - slots).abs() <= window
    scores = torch.einsum("qhc,khc->hqk", q, k) / HEAD_SIZE**0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khc->qhc", weights, qkv[:, 2])


CASES = [
    [5],
    [1, 1, 1],
    [BLOCK],
    [BLOCK - 1, 2, BLOCK + 1],
    [3 * BLOCK],
    [30, 0, 0, 40],
    [10, 200, 3, 0, 0],
]


@pytest.mark.parametrize("window", [None, 1, 7, 63, 64, 65, 150])
@pytest.mark.parametrize("lengths", CASES, ids=str)
@pytest.mark.parametrize("function", [attention, reference_attention])
def test_outputs_and_gradients_equal_dense_masked_attention(
    function: object, lengths: list[int], window: int | None
) -> None:
    assert callable(function)
    qkv, cos, sin, cu_seqlens = packed(lengths)
    qkv.requires_grad_()
    documents = Documents(cu_seqlens, max(lengths), len(qkv))
    out = function(qkv, cos, sin, documents, window)
    expected = dense(qkv, cos, sin, cu_seqlens, window)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-10)

    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    (gradient,) = torch.autograd.grad((out * weight).sum(), qkv)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), qkv)
    torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=1e-10)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=8).filter(any),
    window=st.none() | st.integers(1, 100),
)
def test_any_documents_and_window(lengths: list[int], window: int | None) -> None:
    qkv, cos, sin, cu_seqlens = packed(lengths)
    documents = Documents(cu_seqlens, max(lengths), len(qkv))
    out = attention(qkv, cos, sin, documents, window)
    torch.testing.assert_close(
        out, dense(qkv, cos, sin, cu_seqlens, window), atol=1e-10, rtol=1e-10
    )


@pytest.mark.parametrize("window", [None, 7])
def test_a_gradient_of_any_memory_layout_is_taken(window: int | None) -> None:
    qkv, cos, sin, cu_seqlens = packed([70, 9])
    qkv.requires_grad_()
    documents = Documents(cu_seqlens, 70, 79)
    out = attention(qkv, cos, sin, documents, window)
    (gradient,) = torch.autograd.grad(out.sum(), qkv)  # an expanded gradient, of stride 0
    (wanted,) = torch.autograd.grad(dense(qkv, cos, sin, cu_seqlens, window).sum(), qkv)
    torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=1e-10)


def test_the_memory_of_local_layers_grows_linearly() -> None:
    def mask_elements(tokens: int) -> int:
        cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32)
        return Documents(cu_seqlens, tokens, tokens).block_mask(64, torch.float32).numel()

    assert mask_elements(16 * 1024) == 16 * mask_elements(1024)


def test_the_mask_is_computed_once_per_batch() -> None:
    documents = Documents(torch.tensor([0, 100], dtype=torch.int32), 100, 100)
    first = documents.block_mask(64, torch.float32)
    assert documents.block_mask(64, torch.float32) is first
    assert documents.block_mask(32, torch.float32) is not first
    assert documents.bounds() is documents.bounds()


def test_rotating_back_restores() -> None:
    qkv, cos, sin, _ = packed([20])
    there, back = torch.empty_like(qkv), torch.empty_like(qkv)
    rotate_into(there, qkv, cos, sin)
    torch.testing.assert_close(there, rotate(qkv, cos, sin))
    rotate_into(back, there, cos, -sin)
    torch.testing.assert_close(back, qkv)


def test_scores_depend_on_relative_positions_only() -> None:
    x = torch.randn(2, 1, HEAD_SIZE, generator=torch.Generator().manual_seed(0)).double()
    scores = []
    for start in (0, 11):
        cos, sin = rope_tables(torch.tensor([start, start + 5]), HEAD_SIZE, 100.0, torch.float64)
        query, key = rotate(x, cos, sin)
        scores.append((query * key).sum())
    torch.testing.assert_close(scores[0], scores[1], atol=1e-6, rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("window", [None, 7, 64])
def test_cuda_kernels_equal_the_reference(window: int | None) -> None:
    qkv, cos, sin, cu_seqlens = (
        x.cuda() if x.dtype == torch.int32 else x.cuda().bfloat16()
        for x in packed([10, 200, 3, 0, 0])
    )
    documents = Documents(cu_seqlens, 200, len(qkv))
    results = []
    for function, dtype in ((attention, torch.bfloat16), (reference_attention, torch.float32)):
        inputs = qkv.to(dtype).detach().requires_grad_()
        out = function(inputs, cos.to(dtype), sin.to(dtype), documents, window)
        (gradient,) = torch.autograd.grad(out.float().square().sum(), inputs)
        results.append((out.float(), gradient.float()))
    for got, wanted in zip(*results, strict=True):
        assert (got - wanted).norm() < 0.02 * wanted.norm()
