"""Kernels against their references, in Triton's interpreter and on a GPU.

test_kernels.py runs this in a process of its own, since the interpreter is chosen when Triton is
imported; tests/gpu collects the same tests on a GPU.

Float32 differs by the order of sums. Bfloat16 rounds at the same places on both sides: what differs
by one unit in the last place (2^-8) is where sums in another order round to another number.
"""

import itertools
import os

import pytest
import torch
from torch import Tensor

from restomod.kernels import use_triton
from restomod.kernels.cross_entropy import (
    softmax_cross_entropy_,
    softmax_cross_entropy_reference_,
)
from restomod.kernels.glu import glu, glu_reference
from restomod.kernels.norm import add_norm, add_norm_reference
from restomod.kernels.rope import rope_qk, rope_qk_backward_, rope_qk_reference
from restomod.model.rope import rope_tables

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.bfloat16]


def draw(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(DEVICE, dtype)


def close(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    bound = 1e-5 if a.dtype == torch.float32 else 2**-7
    torch.testing.assert_close(a.float(), b.float(), atol=bound, rtol=bound)


def test_kernels_run_and_not_their_references() -> None:
    assert use_triton(torch.zeros(1, device=DEVICE))
    assert not use_triton(torch.zeros(1, device=DEVICE, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "heads", "size", "turned"),
    [(1, 1, 2, 2), (5, 3, 64, 64), (3, 2, 10, 6), (7, 12, 64, 32), (2, 5, 20, 20)],
)
def test_rope(tokens: int, heads: int, size: int, turned: int, dtype: torch.dtype) -> None:
    qkv = draw(tokens, 3, heads, size, dtype=dtype)
    cos, sin = rope_tables(torch.arange(tokens, device=DEVICE) * 37, turned, 100.0, torch.float32)
    out = rope_qk(qkv, cos, sin)
    close(out, rope_qk_reference(qkv, cos, sin))
    grad = qkv.clone()
    rope_qk_backward_(grad, cos, sin)
    close(grad[:, :2], rope_qk_reference(qkv, cos, -sin))
    assert torch.equal(grad[:, 2], qkv[:, 2])
    if dtype == torch.float32:
        grad[:, :2] = out
        rope_qk_backward_(grad, cos, sin)
        close(grad, qkv)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["geglu", "swiglu"])
@pytest.mark.parametrize(("tokens", "size"), [(1, 1), (3, 40), (2, 1000), (2, 1025), (5, 7)])
def test_glu(tokens: int, size: int, activation: str, dtype: torch.dtype) -> None:
    x = draw(tokens, 2 * size, dtype=dtype, scale=2.0).requires_grad_()
    grad = draw(tokens, size, dtype=dtype)
    out, wanted = glu(x, activation), glu_reference(x.float(), activation).to(dtype)
    close(out, wanted)
    close(*(torch.autograd.grad(y, x, grad)[0] for y in (out, wanted)))


@pytest.mark.parametrize(
    ("x_dtype", "residual_dtype"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2],
)
@pytest.mark.parametrize(("rms", "has_bias"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize(("tokens", "size"), [(1, 3), (5, 40), (3, 768), (600, 7)])
def test_add_norm(
    tokens: int,
    size: int,
    rms: bool,
    has_bias: bool,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype,
) -> None:
    x = draw(tokens, size, dtype=x_dtype).requires_grad_()
    residual = draw(tokens, size, 1, dtype=residual_dtype)[..., 0].requires_grad_()
    weight, bias = draw(size).requires_grad_(), draw(size, 1)[:, 0].requires_grad_()
    inputs = [x, residual, weight, *([bias] if has_bias else [])]
    results = []
    for function in (add_norm, add_norm_reference):
        h, normed = function(x, residual, weight, bias if has_bias else None, 1e-5, rms)
        grads = [draw(tokens, size, n)[..., 0].to(y.dtype) for n, y in ((2, h), (3, normed))]
        results.append([h, normed, *torch.autograd.grad((h, normed), inputs, grads)])
    for got, wanted in zip(*results, strict=True):
        if x_dtype == torch.bfloat16:
            # The reference rounds every intermediate result to bfloat16, the kernel none.
            assert got.dtype == wanted.dtype
            assert (got - wanted).float().norm() <= 0.01 * wanted.float().norm() + 0.01
        else:
            close(got, wanted)


def test_add_norm_writes_what_autocast_reads() -> None:
    x, residual, weight = draw(3, 16), draw(3, 16).bfloat16(), draw(16)
    with torch.autocast(DEVICE, torch.bfloat16):
        for function in (add_norm, add_norm_reference):
            h, normed = function(x, residual, weight, None, 1e-5, False)
            assert (h.dtype, normed.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("z_weight", [0.0, 0.1])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1), (6, 7), (5, 1023), (4, 5003), (3, 9000)])
def test_cross_entropy(rows: int, vocabulary: int, z_weight: float, dtype: torch.dtype) -> None:
    logits = draw(rows, vocabulary, dtype=dtype, scale=3.0)
    labels = torch.arange(rows, device=DEVICE) * 5 % vocabulary
    logits[0, labels[0]] = 20.0  # right
    if vocabulary > 5000:
        logits[1, [4, 4999]] = 30.0  # two best guesses: the first counts
        labels[1] = 4
    labels[-1] = -100
    ours, theirs = logits.clone(), logits.clone()
    got = softmax_cross_entropy_(ours, labels, z_weight)
    wanted = softmax_cross_entropy_reference_(theirs, labels, z_weight)
    for a, b in itertools.islice(zip(got, wanted, strict=True), 2):
        close(a, b)
    assert torch.equal(got[2], wanted[2])
    assert not ours[-1].any()
    close(ours, theirs)
