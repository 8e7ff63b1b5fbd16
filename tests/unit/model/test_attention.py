"""Attention within packed documents: every kernel that runs here against dense attention."""

import math
from collections.abc import Iterator
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from restomod.errors import UserError
from restomod.model.attention import (
    AttentionPlan,
    alibi_slopes,
    attend,
    choose_backend,
    plan_attention,
)
from restomod.model.attention.cpu import BLOCK, block_mask
from restomod.model.config import EncoderConfig
from restomod.model.rope import rope_tables, rotate, rotate_into

HEADS, HEAD_SIZE = 2, 8
KERNELS = ("cpu", "reference")


def make_config(**changes: object) -> EncoderConfig:
    shape = {"hidden_size": HEADS * HEAD_SIZE, "heads": HEADS, "rope_base_global": 100.0}
    return EncoderConfig(**{**shape, "rope_base_local": 100.0, **changes})  # type: ignore[arg-type]


def make_plan(
    lengths: list[int], kernel: str, dtype: torch.dtype = torch.float64, **changes: object
) -> AttentionPlan:
    """The plan of documents of such lengths; zeros are empty documents."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return plan_attention(
        make_config(**changes), positions, cu_seqlens, max(lengths), dtype, kernel
    )


def make_qkv(tokens: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, 3, HEADS, HEAD_SIZE, generator=generator, dtype=dtype)


def dense(qkv: Tensor, lengths: list[int], config: EncoderConfig, is_global: bool) -> Tensor:
    """One matrix of scores over the whole batch, written without any of the code under test."""
    tokens = len(qkv)
    turned = 0 if config.positions == "alibi" else int(HEAD_SIZE * config.rope_fraction)
    half = turned // 2
    base = config.rope_base_global if is_global else config.rope_base_local
    positions = torch.cat([torch.arange(length) for length in lengths]).float()
    frequencies = 1.0 / base ** (torch.arange(0, turned, 2).float() / max(turned, 1))
    angles = positions[:, None, None] * frequencies
    cos, sin = (
        angles.cos().to(qkv.dtype),
        angles.sin().to(qkv.dtype),
    )  # rounded as transformers does
    qk = []
    for x in (qkv[:, 0], qkv[:, 1]):
        even, odd, rest = x[..., :half], x[..., half:turned], x[..., turned:]
        qk.append(torch.cat([even * cos - odd * sin, odd * cos + even * sin, rest], -1))
    slots = torch.arange(tokens)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = document[:, None] == document
    distance = slots[:, None] - slots
    if not is_global:
        seen &= distance.abs() <= config.local_window // 2
    if config.causal:
        seen &= distance >= 0
    scores = torch.einsum("qhc,khc->hqk", *qk) / HEAD_SIZE**0.5
    if config.positions == "alibi":
        slopes = torch.tensor([2.0 ** (-8 * (h + 1) / HEADS) for h in range(HEADS)]).to(qkv.dtype)
        scores = scores - slopes[:, None, None] * distance.abs()
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khc->qhc", weights, qkv[:, 2])


def check(lengths: list[int], kernel: str, is_global: bool, **changes: object) -> None:
    """Compare outputs and gradients with dense attention's."""
    plan, config = make_plan(lengths, kernel, **changes), make_config(**changes)
    qkv = make_qkv(sum(lengths)).requires_grad_()
    out, expected = attend(qkv, plan, is_global), dense(qkv, lengths, config, is_global)
    close = {"atol": 1e-10, "rtol": 1e-10}
    torch.testing.assert_close(out, expected, **close)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    (gradient,) = torch.autograd.grad((out * weight).sum(), qkv)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), qkv)
    torch.testing.assert_close(gradient, wanted, **close)


CASES = [
    [5],
    [1, 1, 1],
    [BLOCK],
    [BLOCK - 1, 2, BLOCK + 1],
    [3 * BLOCK],
    [30, 0, 0, 40],
    [10, 200, 3, 0, 0],
]
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "alibi": {"positions": "alibi"},
    "causal alibi": {"positions": "alibi", "causal": True},
    "half rope": {"rope_fraction": 0.5},
}


@pytest.mark.parametrize("window", [None, 2, 14, 126, 128, 130, 300])
@pytest.mark.parametrize("lengths", CASES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_outputs_and_gradients_equal_dense_masked_attention(
    kernel: str, lengths: list[int], window: int | None
) -> None:
    check(lengths, kernel, window is None, local_window=window or 128)


@pytest.mark.parametrize("window", [None, 6, 128])
@pytest.mark.parametrize("lengths", [[1], [300, 7], [10, 200, 3, 0, 0]], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_option_equals_dense_attention(
    kernel: str, options: dict[str, object], lengths: list[int], window: int | None
) -> None:
    check(lengths, kernel, window is None, local_window=window or 128, **options)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=8).filter(any),
    window=st.none() | st.integers(1, 100).map(lambda half: 2 * half),
    options=st.sampled_from(list(OPTIONS.values())),
)
def test_any_documents_and_window(
    lengths: list[int], window: int | None, options: dict[str, object]
) -> None:
    check(lengths, "cpu", window is None, local_window=window or 128, **options)


@pytest.mark.parametrize("is_global", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_gradient_of_any_memory_layout_is_taken(kernel: str, is_global: bool) -> None:
    plan = make_plan([70, 9], kernel, local_window=14)
    qkv = make_qkv(79).requires_grad_()
    out = attend(qkv, plan, is_global)
    (gradient,) = torch.autograd.grad(out.sum(), qkv)  # an expanded gradient, of stride 0
    (wanted,) = torch.autograd.grad((attend(qkv, plan, is_global) * 1.0).sum(), qkv)
    torch.testing.assert_close(gradient, wanted)


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """Fill what torch allocates without writing to it with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.zeros(3).new_empty(9).isnan().all()
        assert torch.empty_like(torch.zeros(9)).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("is_global", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_reads_memory_that_nothing_wrote(
    kernel: str, is_global: bool, options: dict[str, object]
) -> None:
    for lengths in ([70, 9], [1], [64, 0, 64, 3]):
        plan = make_plan(lengths, kernel, torch.float32, local_window=14, **options)
        qkv = make_qkv(sum(lengths), torch.float32).requires_grad_()
        out = attend(qkv, plan, is_global)
        (gradient,) = torch.autograd.grad(out.square().sum(), qkv)
        assert out.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("is_global", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_operator_keeps_its_promises_to_torch(
    kernel: str, is_global: bool, options: dict[str, object]
) -> None:
    """Schema, fake, gradient and tracing, by torch's own check."""
    plan = make_plan([70, 9], kernel, local_window=14, **options)
    cos, sin = plan.rope_global if is_global else plan.rope_local
    torch.library.opcheck(
        torch.ops.restomod.attention.default,
        (
            make_qkv(79).requires_grad_(),
            cos,
            sin,
            plan.cu_seqlens,
            None if is_global else plan.block_mask,
            plan.slopes,
            plan.max_seqlen,
            *(plan.reach_global if is_global else plan.reach_local),
            plan.backend,
            False,
        ),
    )


def test_the_memory_of_local_layers_grows_linearly() -> None:
    def mask_elements(tokens: int) -> int:
        cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32)
        return block_mask(cu_seqlens, tokens, 64, 64, None, torch.float32).numel()

    assert mask_elements(16 * 1024) == 16 * mask_elements(1024)


def test_alibi_slopes_are_the_papers() -> None:
    """arXiv 2108.12409: 8 heads from 1/2 to 1/256; 12 heads add some of 16's."""
    assert alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    twelve = alibi_slopes(12).tolist()
    assert twelve[:8] == [2.0**-n for n in range(1, 9)]
    assert twelve[8:] == pytest.approx([2.0 ** -(n + 0.5) for n in range(4)])


@pytest.mark.parametrize(("fraction", "channels"), [(1.0, 8), (0.5, 4), (0.25, 2), (0.01, 0)])
def test_rope_turns_the_asked_share_of_channels(fraction: float, channels: int) -> None:
    assert make_config(rope_fraction=fraction).rope_channels == channels


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotating_back_restores(fraction: float) -> None:
    qkv = make_qkv(1100)
    cos, sin = rope_tables(torch.arange(1100), int(HEAD_SIZE * fraction), 100.0, torch.float64)
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


def test_positions_far_out_turn_as_exactly_as_near_ones() -> None:
    """Channel 0 turns by the position itself."""
    cos, sin = rope_tables(torch.tensor([8191]), 2, 10_000.0, torch.float32)
    assert float(cos) == pytest.approx(math.cos(8191), abs=1e-6)
    assert float(sin) == pytest.approx(math.sin(8191), abs=1e-6)


@pytest.mark.parametrize(
    ("asked", "dtype", "alibi", "reason"),
    [
        ("flash_attn_2", torch.bfloat16, False, "it runs on cuda, the model is on cpu"),
        ("flash_attn_9", torch.float32, False, "there are flash_attn_3"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_with_the_reason(
    asked: str, dtype: torch.dtype, alibi: bool, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        choose_backend(asked, "cpu", dtype, alibi, 64)


@pytest.mark.parametrize("asked", ["flash_attn_3", "flash_attn_4", "varlen"])
def test_kernels_without_alibi_or_float32_say_so(asked: str) -> None:
    with pytest.raises(UserError, match="float16, not in float32"):
        choose_backend(asked, "cuda", torch.float32, False, 64)
    with pytest.raises(UserError, match="does not know ALiBi"):
        choose_backend(asked, "cuda", torch.bfloat16, True, 64)


def test_auto_takes_what_the_machine_has(caplog: pytest.LogCaptureFixture) -> None:
    choose_backend.cache_clear()
    with caplog.at_level("INFO", logger="restomod"):
        assert choose_backend("auto", "cpu", torch.float32, False, 64) == "cpu"
        choose_backend("auto", "cpu", torch.float32, False, 64)
    assert [record.getMessage() for record in caplog.records] == ["attention: cpu"]
    if not torch.cuda.is_available():
        assert choose_backend("auto", "cuda", torch.bfloat16, False, 64) == "reference"
