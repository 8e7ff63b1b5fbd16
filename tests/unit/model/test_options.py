"""What published recipes do differently, recomputation, and compilation."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.nn import functional as F

from restomod.config import ComputeConfig
from restomod.errors import UserError
from restomod.model import compile as compilation
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.init import initialize
from tests.unit.model.test_encoder import CONFIG, batch

OPTIONS = {
    "modernbert": {},
    "rmsnorm swiglu": {"norm": "rmsnorm", "activation": "swiglu"},
    "nomic": {"global_every": 1, "activation": "swiglu"},
    "jina": {"positions": "alibi", "global_every": 1},
    "partial rope": {"rope_fraction": 0.5},
    "causal": {"causal": True},
    "biases": dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "head_bias"), True),
    "no decoder bias": {"decoder_bias": False},
}  # fmt: skip


def build(**changes: object) -> MaskedLM:
    model = MaskedLM(replace(CONFIG, **changes))  # type: ignore[arg-type]
    initialize(model, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            if parameter.ndim == 2 and "embedding" not in name:
                parameter.mul_(6)
            elif "bias" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


def step(model: nn.Module, packed: dict[str, object]) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    sums = model(packed)
    sums.objective.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None for g in gradients)
    return sums.objective.detach(), [g.clone() for g in gradients if g is not None]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_parameter_of_every_option_has_the_right_gradient(options: dict[str, object]) -> None:
    """Along the gradient the loss changes as fast as it says, by finite differences."""
    model = build(**options).double()
    packed = batch([[30, 20], [64]])
    _, gradients = step(model, packed)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        direction, losses = gradient / gradient.norm().clamp(min=1e-12), []
        for distance in (1e-4, -1e-4):
            with torch.no_grad():
                parameter.add_(distance * direction)
                losses.append(float(model(packed).objective))
                parameter.sub_(distance * direction)
        slope = (losses[0] - losses[1]) / 2e-4
        assert slope == pytest.approx(float(gradient.norm()), rel=1e-4, abs=1e-6)


def test_norms_and_gates_are_what_their_names_say() -> None:
    model = build(norm="rmsnorm", activation="swiglu").eval()
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    norm, mlp = model.encoder.final_norm, model.encoder.layers[0].mlp
    scale = (x.square().mean(-1, keepdim=True) + CONFIG.norm_eps).rsqrt()
    torch.testing.assert_close(norm(x), x * scale * norm.weight)
    value, gate = (x @ mlp.Wi.weight.T).split(48, dim=-1)
    torch.testing.assert_close(mlp(x), (F.silu(value) * gate) @ mlp.Wo.weight.T)


def test_a_causal_model_does_not_see_what_comes() -> None:
    model = build(causal=True).eval()
    ids = torch.arange(3, 63)
    bounds = torch.tensor([0, 25, 60])
    before = model.encode(ids, bounds)
    ids[40] += 1
    after = model.encode(ids, bounds)
    assert torch.equal(before[:40], after[:40])
    assert bool((before[40:] != after[40:]).any(-1).all())


@pytest.mark.parametrize("options", [{}, {"positions": "alibi"}, {"causal": True}], ids=str)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("keep", ["input", "attention", "products"])
def test_recomputation_gives_the_same_bits(
    keep: str, every: int, options: dict[str, object]
) -> None:
    model = build(**options).train()
    packed = batch([[30, 20], [64]])
    loss, gradients = step(model, packed)
    model.compute_as(ComputeConfig(recompute_every=every, recompute_keep=keep))
    recomputed = [layer.keeps is not None for layer in model.encoder.layers]
    assert recomputed == [n % every == 0 for n in range(4)]
    again, gradients_again = step(model, packed)
    assert torch.equal(loss, again)
    for a, b in zip(gradients, gradients_again, strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compile_with(backend: object, model: MaskedLM, patch: pytest.MonkeyPatch) -> None:
    """Do as `compile_model` does, with another backend than one that takes a minute."""
    native = nn.Module.compile
    patch.setattr(
        nn.Module, "compile", lambda self, **options: native(self, backend=backend, **options)
    )
    patch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    compilation.compile_model(model, "cpu", Path("unused"))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("keep", [None, "products"])
def test_compiled_layers_train_alike_and_are_compiled_once(
    keep: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compiled = build().train(), build().train()
    for model in (plain, compiled):
        model.compute_as(ComputeConfig(recompute_every=2 if keep else 0, recompute_keep=keep or ""))
    backend = CompileCounterWithBackend("aot_eager")
    compile_with(backend, compiled, monkeypatch)
    counts = []
    for n in range(4):
        packed = batch([[30, 20], [64]] if n % 2 else [[1, 1, 40], [9]], first_row=2 * n)
        if n == 2:  # another number of predictions, which the CPU does not pad
            packed["labels"][:7] = -100
        (loss, gradients), (wanted, gradients_wanted) = (
            step(model, packed) for model in (compiled, plain)
        )
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)  # dropout included
        for a, b in zip(gradients, gradients_wanted, strict=True):
            assert (a - b).norm() <= 1e-4 * b.norm()
        counts.append(backend.frame_count)
    assert counts[1:] == counts[1:2] * 3, f"graphs compiled by step: {counts}"
    assert not counters["graph_break"]
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # as evaluation runs
        compiled.eval()(packed)
    assert backend.frame_count == counts[-1]


@pytest.mark.usefixtures("fresh_compiler")
def test_every_phase_may_have_shapes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compiled = build().train(), build().train()
    compile_with("eager", compiled, monkeypatch)
    for length in (64, 48, 32, 24, 20):
        packed = batch([[length], [length]]) | {"max_seqlen": length}
        torch.testing.assert_close(step(compiled, packed)[0], step(plain, packed)[0])


def test_without_a_compiler_compilation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"compute\.compile: torch.compile needs a C"):
        compilation.check_compiler("cpu")
    compilation.check_compiler("cuda")


@pytest.mark.parametrize(
    ("asked", "device", "wanted"),
    [
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        ("always", "cpu", True),
        ("never", "cuda", False),
    ],
)
def test_when_the_model_is_compiled(asked: str, device: str, wanted: bool) -> None:
    assert compilation.compiles(ComputeConfig(compile=asked), device) == wanted


def test_the_z_loss_is_part_of_what_is_minimised_not_of_what_is_reported() -> None:
    model = MaskedLM(EncoderConfig(**vars(CONFIG))).eval()
    packed = batch([[64]])
    without = model(packed)
    model.z_loss = 0.5
    sums = model(packed)
    kept = packed["labels"] != -100
    ids, bounds = packed["input_ids"], packed["cu_seqlens"]
    partition = model.logits(ids, bounds)[packed["masked_positions"][kept]].logsumexp(-1)
    torch.testing.assert_close(sums.objective - sums.loss, 0.5 * partition.square().sum())
    torch.testing.assert_close(sums.loss, without.objective)
