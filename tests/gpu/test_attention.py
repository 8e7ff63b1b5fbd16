"""Every attention kernel of this GPU against the plain reference in float32."""

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from restomod.model.attention import BACKENDS, AttentionPlan, attend, choose_backend, plan_attention
from restomod.model.config import EncoderConfig

pytestmark = pytest.mark.gpu

HEADS, HEAD_SIZE = 12, 64
LENGTHS = [700, 1, 64, 0, 129, 1024, 3, 0, 0]
KERNELS = [name for name, backend in BACKENDS.items() if backend.device == "cuda"]


def make_plan(kernel: str, dtype: torch.dtype, **options: object) -> AttentionPlan:
    config = EncoderConfig(hidden_size=HEADS * HEAD_SIZE, heads=HEADS, **options)  # type: ignore[arg-type]
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).cuda()
    bounds = torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32).cuda()
    return plan_attention(config, positions, bounds, max(LENGTHS), dtype, kernel)


def run(qkv: Tensor, weight: Tensor, plan: AttentionPlan, is_global: bool) -> tuple[Tensor, Tensor]:
    qkv = qkv.detach().requires_grad_()
    out = attend(qkv, plan, is_global)
    (gradient,) = torch.autograd.grad((out * weight.to(out.dtype)).sum(), qkv)
    return out, gradient


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (sum(LENGTHS), 3, HEADS, HEAD_SIZE)
    qkv = torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
    return qkv, torch.randn(shape[0], *shape[2:], generator=generator, device="cuda").bfloat16()


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    reason = BACKENDS[request.param].missing()
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"local_window": 2}, {"rope_fraction": 0.5}, {"positions": "alibi"}],
    ids=str,
)
@pytest.mark.parametrize("is_global", [True, False])
def test_outputs_and_gradients_are_the_references(
    kernel: str, is_global: bool, options: dict[str, object]
) -> None:
    if "positions" in options and not BACKENDS[kernel].alibi:
        pytest.skip(f"{kernel} does not know ALiBi")
    qkv, weight = inputs()
    out, gradient = run(qkv, weight, make_plan(kernel, torch.bfloat16, **options), is_global)
    wanted = run(qkv.float(), weight, make_plan("reference", torch.float32, **options), is_global)
    for got, want, bound in zip((out, gradient), wanted, (0.01, 0.02), strict=True):
        assert (got.float() - want).norm() <= bound * want.norm()


@pytest.mark.parametrize("is_global", [True, False])
def test_nothing_reads_memory_that_nothing_wrote(kernel: str, is_global: bool) -> None:
    qkv, weight = inputs()
    torch.use_deterministic_algorithms(True)  # fills what is not written to with NaN
    try:
        assert qkv.new_empty(9).isnan().all()
        plan = make_plan(kernel, torch.bfloat16)
        results = [run(qkv, weight, plan, is_global) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    for first, second in zip(*results, strict=True):
        assert first.isfinite().all()
        assert torch.equal(first, second)


def test_a_kernel_for_half_precision_is_there() -> None:
    assert choose_backend("auto", "cuda", torch.bfloat16, False, 64) in KERNELS
