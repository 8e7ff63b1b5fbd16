"""The loss against torch's cross-entropy on whole logits, and the memory that it needs."""

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from restomod.model.loss import IGNORED, linear_cross_entropy


def make(m: int, d: int, v: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Features, decoder, bias, and labels of which every fifth is ignored."""
    generator = torch.Generator().manual_seed(m * v)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    labels = torch.randint(v, (m,), generator=generator)
    labels[::5] = IGNORED
    return draw(m, d), draw(v, d), draw(v), labels


def plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, int, int]:
    logits = F.linear(hidden, weight, bias)
    kept = labels != IGNORED
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    partition = logits.logsumexp(-1)[kept]
    right = int((logits.argmax(-1) == labels)[kept].sum())
    return loss + z_loss * partition.square().sum(), loss, right, int(kept.sum())


# Pieces of one row, of a few, and the whole: 1 MB holds 125,000 float64.
SHAPES = [(1, 4, 1), (7, 3, 5), (30, 8, 7001), (64, 8, 50_001), (33, 5, 125_001)]


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("m", "d", "v"), SHAPES)
def test_sums_and_gradients_equal_those_of_whole_logits(
    m: int, d: int, v: int, with_bias: bool, z_loss: float
) -> None:
    hidden, weight, bias, labels = make(m, d, v)
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    sums = linear_cross_entropy(
        hidden, weight, bias if with_bias else None, labels, z_loss, logits_mb=1
    )
    objective, loss, right, count = plain(
        hidden, weight, bias if with_bias else None, labels, z_loss
    )
    torch.testing.assert_close(sums.objective, objective)
    torch.testing.assert_close(sums.loss, loss)
    assert (int(sums.correct), int(sums.predictions)) == (right, count)
    got = torch.autograd.grad(sums.objective * 3, inputs)
    wanted = torch.autograd.grad(objective * 3, inputs)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_size_of_the_pieces_changes_nothing_but_rounding() -> None:
    hidden, weight, bias, labels = make(200, 16, 9001, torch.float32)
    losses = [
        float(linear_cross_entropy(hidden, weight, bias, labels, 0.0, mb).loss) for mb in (1, 2, 99)
    ]
    assert max(losses) - min(losses) <= 1e-6 * max(losses)


def test_nothing_to_predict_is_zero() -> None:
    hidden, weight, bias, labels = make(6, 4, 9)
    labels[:] = IGNORED
    for m in (6, 0):
        sums = linear_cross_entropy(hidden[:m], weight, bias, labels[:m], 0.1, 1)
        assert [float(x.detach()) for x in sums] == [0, 0, 0, 0]
        for gradient in torch.autograd.grad(sums.objective, (weight, bias)):
            assert not gradient.any()


def test_half_precision_is_summed_in_float32() -> None:
    hidden, weight, bias, labels = make(300, 16, 1000, torch.float32)
    _, expected, _, _ = plain(hidden, weight, bias, labels, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        sums = linear_cross_entropy(hidden, weight, bias, labels, 0.0, 1)
    assert sums.loss.dtype == torch.float32
    assert float(sums.loss) == pytest.approx(float(expected.detach()), rel=0.01)
    gradient, wanted = (torch.autograd.grad(loss, weight)[0] for loss in (sums.objective, expected))
    assert gradient.dtype == torch.float32
    assert (gradient - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("gradients", [True, False])
def test_the_operator_keeps_its_promises_to_torch(gradients: bool) -> None:
    hidden, weight, bias, labels = make(9, 4, 11, torch.float32)
    if not gradients:
        hidden, weight, bias = (x.detach() for x in (hidden, weight, bias))
    torch.library.opcheck(
        torch.ops.restomod.linear_cross_entropy.default,
        (hidden, weight, bias, labels, 0.1, 4, gradients),
    )


PEAK = """
import json, sys, torch
from restomod.model.loss import linear_cross_entropy
v, whole = int(sys.argv[1]), sys.argv[2] == "whole"
m, d = 2048, 64
def inputs(words):
    weight = (torch.randn(words, d) * 0.1).requires_grad_()
    weight.grad = torch.ones_like(weight)
    return torch.randn(m, d, requires_grad=True), weight, torch.randint(words, (m,))
def step(hidden, weight, labels):
    if whole:
        torch.nn.functional.cross_entropy(hidden @ weight.T, labels).backward()
    else:
        linear_cross_entropy(hidden, weight, None, labels, 0.0, 64).objective.backward()
def peak():  # of this process image; ru_maxrss would start from that of the process that forked it
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024
step(*inputs(100))
given = inputs(v)
before = peak()
step(*given)
print(json.dumps(peak() - before))
"""


def peak_bytes(vocabulary: int, how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(vocabulary), how], capture_output=True, check=True
    )
    return int(json.loads(done.stdout))


@pytest.mark.parametrize("vocabulary", [50_368, 256_000])
def test_the_logits_never_exist_whole(vocabulary: int) -> None:
    """2,048 positions: 413 MB of logits with 50,368 words, 2.1 GB with 256,000; pieces of 64 MB."""
    logits, weight = 2048 * vocabulary * 4, vocabulary * 64 * 4
    assert 32e6 < peak_bytes(vocabulary, "pieces") < 64e6 + 2 * weight + 100e6 < 0.9 * logits
    if vocabulary == 50_368:
        assert peak_bytes(vocabulary, "whole") > logits  # what the measurement would see
