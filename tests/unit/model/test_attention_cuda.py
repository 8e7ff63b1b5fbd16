"""How flash-attn 2, 3 and 4 and torch's varlen kernel are called, without a GPU.

Each library's functions are imitated with their whole parameter lists (flash-attn 2.8.3 and its
`hopper` folder, flash-attn-4 4.0.0b36, torch's own schema) and dense attention inside. So an
argument in the wrong place, a window with the wrong meaning or a gradient written elsewhere shows;
what the real kernels compute is for tests/gpu.
"""

import importlib.machinery
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from restomod.config import ATTENTION_KERNELS
from restomod.errors import UserError
from restomod.model.attention import attend, choose_backend, plan_attention
from restomod.model.config import EncoderConfig

HEADS, HEAD_SIZE = 2, 8
SEEN: dict[str, Any] = {}
"""What the last backward was told."""


class Call(NamedTuple):
    """What a kernel was asked for, beside queries, keys and values."""

    cu: Tensor
    window: tuple[int, int]
    slopes: Tensor | None

    def scores(self, q: Tensor, k: Tensor, document: slice) -> Tensor:
        """Scores [H, S, S] of one document; -1 is a window without an end."""
        slots = torch.arange(document.stop - document.start)
        offset = slots - slots[:, None]
        scores = torch.einsum("qhc,khc->hqk", q[document], k[document]) * q.shape[-1] ** -0.5
        if self.slopes is not None:
            scores = scores - self.slopes[:, None, None] * offset.abs()
        left, right = self.window
        far = (offset < -left if left >= 0 else False) | (offset > right if right >= 0 else False)
        return scores.masked_fill(torch.as_tensor(far), -torch.inf)

    def documents(self) -> list[slice]:
        return [slice(start, end) for start, end in itertools.pairwise(self.cu.tolist())]


def check(
    qkv: tuple[Tensor, ...],
    cu: tuple[Any, Any],
    longest: tuple[Any, Any],
    scale: float | None,
    causal: bool,
    window: tuple[Any, Any],
    slopes: Tensor | None = None,
) -> Call:
    assert cu[0].dtype == cu[1].dtype == torch.int32
    assert torch.equal(*cu)
    assert longest[0] == longest[1] >= int(cu[0].diff().max())
    assert scale is None or scale == pytest.approx(HEAD_SIZE**-0.5)
    assert all(x.stride(-1) == 1 and x.shape[1:] == (HEADS, HEAD_SIZE) for x in qkv)
    assert isinstance(causal, bool)
    left, right = (-1 if x is None else x for x in window)
    return Call(cu[0], (left, 0 if causal else right), slopes)


def forward(qkv: tuple[Tensor, ...], *rest: Any) -> tuple[Tensor, Tensor]:
    """Return out [T, H, K] and logsumexp [H, T]; what no document covers is NaN."""
    (q, k, v), call = qkv, check(qkv, *rest)
    out, logsumexp = torch.full_like(q, torch.nan), q.new_full((q.shape[1], len(q)), torch.nan)
    for document in call.documents():
        scores = call.scores(q, k, document)
        out[document] = torch.einsum("hqk,khc->qhc", scores.softmax(-1), v[document])
        logsumexp[:, document] = scores.logsumexp(-1)
    return out, logsumexp


def backward(
    grad: Tensor, qkv: tuple[Tensor, ...], out: Tensor, logsumexp: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    (q, k, v), call = qkv, check(qkv, *rest)
    grads = [torch.full_like(x, torch.nan) for x in qkv]
    for document in call.documents():
        weights = (call.scores(q, k, document) - logsumexp[:, document, None]).exp()
        inner = (grad[document] * out[document]).sum(-1).T[..., None]
        grad_weights = torch.einsum("qhc,khc->hqk", grad[document], v[document])
        grad_scores = weights * (grad_weights - inner) * q.shape[-1] ** -0.5
        grads[0][document] = torch.einsum("hqk,khc->qhc", grad_scores, k[document])
        grads[1][document] = torch.einsum("hqk,qhc->khc", grad_scores, q[document])
        grads[2][document] = torch.einsum("hqk,qhc->khc", weights, grad[document])
    return tuple(grads)


def write(targets: tuple[Tensor | None, ...], grads: tuple[Tensor, ...]) -> None:
    for target, grad in zip(targets, grads, strict=True):
        assert target is not None
        target.copy_(grad)


# fmt: off
def fa2_forward(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale,
    causal, window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None,
    return_softmax=False, block_table=None, leftpad_k=None, seqused_k=None, zero_tensors=False,
):
    assert (dropout_p, softcap, return_softmax, zero_tensors) == (0.0, 0.0, False, False)
    assert block_table is leftpad_k is seqused_k is None
    out, logsumexp = forward(
        (q, k, v), (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k), softmax_scale,
        causal, (window_size_left, window_size_right), alibi_slopes,
    )
    return out, logsumexp, torch.empty(0), torch.empty(0)


def fa2_backward(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
    max_seqlen_k, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap,
    alibi_slopes, deterministic, rng_state=None, zero_tensors=False,
):
    assert (dropout_p, softcap, zero_tensors, rng_state) == (0.0, 0.0, False, None)
    SEEN["deterministic"] = deterministic
    write((dq, dk, dv), backward(
        dout, (q, k, v), out, softmax_lse, (cu_seqlens_q, cu_seqlens_k),
        (max_seqlen_q, max_seqlen_k), softmax_scale, causal,
        (window_size_left, window_size_right), alibi_slopes,
    ))


def fa3_forward(
    q, k, v, k_new, v_new, qv, out, cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q,
    seqused_k, max_seqlen_q, max_seqlen_k, page_table, kv_batch_idx, leftpad_k, rotary_cos,
    rotary_sin, seqlens_rotary, q_descale, k_descale, v_descale, softmax_scale, causal,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
    scheduler_metadata=None, num_splits=1, pack_gqa=None, sm_margin=0,
):
    unused = (
        k_new, v_new, qv, out, cu_seqlens_k_new, seqused_q, seqused_k, page_table, kv_batch_idx,
        leftpad_k, rotary_cos, rotary_sin, seqlens_rotary, q_descale, k_descale, v_descale,
        scheduler_metadata, pack_gqa,
    )
    assert all(x is None for x in unused)
    assert (attention_chunk, softcap, num_splits, sm_margin) == (0, 0.0, 1, 0)
    return (*forward(
        (q, k, v), (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k), softmax_scale,
        causal, window_size,
    ), torch.empty(0))


def fa3_backward(
    dout, q, k, v, out, softmax_lse, cu_seqlens_q, cu_seqlens_k, sequed_q, sequed_k, max_seqlen_q,
    max_seqlen_k, dq, dk, dv, softmax_scale, causal, window_size=(-1, -1), softcap=0.0,
    deterministic=False, sm_margin=0,
):
    assert (sequed_q, sequed_k, softcap, sm_margin) == (None, None, 0.0, 0)
    SEEN["deterministic"] = deterministic
    write((dq, dk, dv), backward(
        dout, (q, k, v), out, softmax_lse, (cu_seqlens_q, cu_seqlens_k),
        (max_seqlen_q, max_seqlen_k), softmax_scale, causal, window_size,
    ))


def fa4_forward(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None,
    max_seqlen_q=None, max_seqlen_k=None, min_seqlen_k=None, page_table=None, softmax_scale=None,
    causal=False, softcap=None, window_size_left=None, window_size_right=None, learnable_sink=None,
    tile_mn=None, mma_pv_is_rs=None, intra_wg_overlap=None, num_threads=384, num_splits=1,
    pack_gqa=None, _arch=None, score_mod=None, mask_mod=None, block_sparse_tensors=None,
    return_lse=False, out=None, lse=None, aux_tensors=None, aux_scalars=None, q_descale=None,
    k_descale=None, v_descale=None, gather_kv_indices=None, scheduler_metadata=None,
    seqlen_k_per_split=None, disable_scheduler_metadata=False, gather_bwd_recompute_p=False,
):
    assert return_lse  # a forward pass under no_grad leaves it out
    assert (window_size_left, window_size_right) != (-1, -1)  # None is "no end" here
    return (*forward(
        (q, k, v), (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k), softmax_scale,
        causal, (window_size_left, window_size_right),
    ), None, None, None)


def fa4_backward(
    q, k, v, out, dout, lse, softmax_scale=None, causal=False, softcap=0.0, window_size_left=None,
    window_size_right=None, m_block_size=64, n_block_size=128, num_threads=256, pack_gqa=False,
    num_stages_Q=2, num_stages_dO=2, SdP_swapAB=False, dKV_swapAB=False, dQ_swapAB=False,
    AtomLayoutMSdP=2, AtomLayoutNdKV=2, AtomLayoutMdQ=2, V_in_regs=False, cu_seqlens_q=None,
    cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None, max_seqlen_k=None,
    deterministic=False, dq=None, dk=None, dv=None, score_mod=None, score_mod_bwd=None,
    mask_mod=None, aux_tensors=None, aux_scalars=None, block_sparse_tensors=None, dlse=None,
    learnable_sink=None,
):
    assert dq is dk is dv is None  # it refuses strided ones
    SEEN["deterministic"] = deterministic
    return backward(
        dout, (q, k, v), out, lse, (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k),
        softmax_scale, causal, (window_size_left, window_size_right),
    )


def aten_forward(
    query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
    return_debug_mask, *, scale=None, window_size_left=None, window_size_right=None,
    seqused_k=None, alibi_slopes=None, block_table=None, num_splits=None,
):
    assert (dropout_p, return_debug_mask) == (0.0, False)
    empty = torch.empty(0)
    return (*forward(
        (query, key, value), (cum_seq_q, cum_seq_k), (max_q, max_k), scale, is_causal,
        (window_size_left, window_size_right), alibi_slopes,
    ), empty, empty, empty)


def aten_backward(
    grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p,
    is_causal, rng_state, unused, *, scale=None, window_size_left=None, window_size_right=None,
):
    assert dropout_p == 0.0
    assert rng_state.dtype == torch.uint64
    return backward(
        grad_out, (query, key, value), out, logsumexp, (cum_seq_q, cum_seq_k), (max_q, max_k),
        scale, is_causal, (window_size_left, window_size_right),
    )
# fmt: on


FUNCTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "flash_attn.flash_attn_interface": {
        "_flash_attn_varlen_forward": fa2_forward,
        "_flash_attn_varlen_backward": fa2_backward,
    },
    "flash_attn_interface": {
        "_flash_attn_forward": fa3_forward,
        "_flash_attn_backward": fa3_backward,
    },
    "flash_attn.cute.interface": {
        "_flash_attn_fwd": fa4_forward,
        "_flash_attn_bwd": fa4_backward,
    },
}
MODULES = {
    "flash_attn_2": "flash_attn.flash_attn_interface",
    "flash_attn_3": "flash_attn_interface",
    "flash_attn_4": "flash_attn.cute.interface",
}


def install(patch: pytest.MonkeyPatch, name: str, functions: dict[str, Any]) -> None:
    """Make a module importable, with the packages around it."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        module = types.ModuleType(path)
        module.__spec__ = importlib.machinery.ModuleSpec(path, None)
        module.__path__ = []
        patch.setitem(sys.modules, path, module)
    vars(module).update(functions)


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, functions in FUNCTIONS.items():
        install(monkeypatch, name, functions)
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", aten_forward, "CPU")
    library.impl("_flash_attention_backward", aten_backward, "CPU")
    yield
    library._destroy()


OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "causal": {"causal": True},
    "alibi": {"positions": "alibi"},
    "half rope": {"rope_fraction": 0.5},
}


@pytest.mark.usefixtures("imitated")
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("is_global", [True, False])
@pytest.mark.parametrize("kernel", [*MODULES, "varlen"])
def test_the_libraries_are_told_what_the_reference_is(
    kernel: str, is_global: bool, options: dict[str, object], deterministic: bool
) -> None:
    if options.get("positions") == "alibi" and kernel != "flash_attn_2":
        with pytest.raises(UserError, match="does not know ALiBi"):
            choose_backend(kernel, "cuda", torch.bfloat16, True, 64)
        return
    lengths = [9, 1, 30, 0]
    config = EncoderConfig(
        hidden_size=HEADS * HEAD_SIZE,
        heads=HEADS,
        local_window=10,
        **options,  # type: ignore[arg-type]
    )
    plan = plan_attention(
        config,
        torch.cat([torch.arange(length) for length in lengths]),
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        40,
        torch.float32,
        "reference",
    )
    plan = plan._replace(deterministic=deterministic)
    generator = torch.Generator().manual_seed(0)
    qkv, weight = (
        torch.randn(sum(lengths), *shape, HEADS, HEAD_SIZE, generator=generator)
        for shape in ((3,), ())
    )
    qkv.requires_grad_()
    results = []
    for name in (kernel, "reference"):
        out = attend(qkv, plan._replace(backend=name), is_global)
        results.append([out, *torch.autograd.grad((out * weight).sum(), qkv)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    if kernel != "varlen":  # torch reads its own switch
        assert SEEN.pop("deterministic") == deterministic


def gpu(patch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Pretend that there is a GPU of such capability and no flash-attn."""
    choose_backend.cache_clear()
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)


@pytest.mark.parametrize(
    ("capability", "installed", "alibi", "chosen"),
    [
        ((9, 0), list(MODULES), False, "flash_attn_3"),
        ((9, 0), ["flash_attn_2", "flash_attn_4"], False, "flash_attn_4"),
        ((10, 0), list(MODULES), False, "flash_attn_4"),
        ((10, 0), ["flash_attn_3", "flash_attn_2"], False, "flash_attn_2"),
        ((8, 0), list(MODULES), False, "flash_attn_2"),
        ((9, 0), list(MODULES), True, "flash_attn_2"),
        ((9, 0), [], False, "varlen"),
        ((9, 0), ["flash_attn_3"], True, "reference"),
        ((7, 5), list(MODULES), False, "reference"),
    ],
)
def test_auto_takes_the_first_kernel_that_can_run(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    installed: list[str],
    alibi: bool,
    chosen: str,
) -> None:
    gpu(monkeypatch, capability)
    for name in installed:
        install(monkeypatch, MODULES[name], FUNCTIONS[MODULES[name]])
    assert choose_backend("auto", "cuda", torch.bfloat16, alibi, 64) == chosen


@pytest.mark.parametrize("kernel", MODULES)
def test_a_kernel_that_is_not_there_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    gpu(monkeypatch, (9, 0))
    with pytest.raises(UserError, match=f"{MODULES[kernel]} is not installed"):
        choose_backend(kernel, "cuda", torch.bfloat16, False, 64)
    gpu(monkeypatch, (7, 5))
    with pytest.raises(UserError, match=r"does not run on compute capability 7\.5"):
        choose_backend(kernel, "cuda", torch.bfloat16, False, 64)


@pytest.mark.parametrize(
    ("functions", "reason"),
    [
        ({}, "has no _flash_attn_varlen_forward: another version"),
        (
            {
                "_flash_attn_varlen_forward": lambda q, window_size: None,
                "_flash_attn_varlen_backward": fa2_backward,
            },
            "does not take alibi_slopes, window_size_left, window_size_right",
        ),
    ],
)
def test_another_version_is_refused_with_what_differs(
    monkeypatch: pytest.MonkeyPatch, functions: dict[str, Any], reason: str
) -> None:
    gpu(monkeypatch, (9, 0))
    install(monkeypatch, MODULES["flash_attn_2"], functions)
    with pytest.raises(UserError, match=reason):
        choose_backend("flash_attn_2", "cuda", torch.bfloat16, False, 64)
    assert choose_backend("auto", "cuda", torch.bfloat16, False, 64) == "varlen"


@pytest.mark.parametrize(
    ("head_size", "chosen"), [(8, "flash_attn_4"), (256, "flash_attn_2"), (36, "reference")]
)
def test_heads_that_a_kernel_cannot_take_go_to_the_next(
    monkeypatch: pytest.MonkeyPatch, head_size: int, chosen: str
) -> None:
    gpu(monkeypatch, (10, 0))
    for name in MODULES.values():
        install(monkeypatch, name, FUNCTIONS[name])
    assert choose_backend("auto", "cuda", torch.bfloat16, False, head_size) == chosen
    with pytest.raises(
        UserError, match=r"takes heads of 8 to 256 channels in steps of 8, and .* 36"
    ):
        choose_backend("varlen", "cuda", torch.bfloat16, False, 36)


def test_every_kernel_of_the_recipe_is_tested_somewhere() -> None:
    assert set(ATTENTION_KERNELS) == {*MODULES, "varlen", "cpu", "reference"}
