"""Training steps on a GPU: precision, syncs, compilation, memory, and the same masks as a CPU's."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from restomod.config import ComputeConfig, OptimizerConfig
from restomod.model.compile import compile_model
from restomod.model.config import EncoderConfig
from restomod.model.dropout import keep_mask, layer_keys, token_keys
from restomod.model.encoder import MaskedLM
from restomod.model.init import initialize
from restomod.model.memory import step_memory
from restomod.optim.build import build_optimizer
from restomod.train.hardware import compute_deterministically

pytestmark = pytest.mark.gpu

CONFIG = EncoderConfig(
    layers=4, hidden_size=256, heads=4, intermediate_size=384, vocab_size=10_000, seed=3
)
ROWS, ROW, DOCUMENT = 4, 2048, 512
PREDICTED = ROWS * ROW * 3 // 10


def build(**compute: Any) -> MaskedLM:
    model = MaskedLM(CONFIG)
    initialize(model, seed=1)
    model.cuda().train().compute_as(ComputeConfig(**compute))
    return model


def batch(n: int) -> dict[str, Any]:
    """Rows of whole documents, their tokens drawn by the number of the batch."""
    tokens = ROWS * ROW
    generator = torch.Generator().manual_seed(n)
    ids = torch.randint(0, CONFIG.vocab_size, (tokens,), generator=generator)
    masked = torch.randperm(tokens, generator=generator)[:PREDICTED].sort().values
    labels = ids[masked]
    labels[-7 - n :] = -100
    made: dict[str, Any] = {
        "input_ids": ids,
        "position_ids": (torch.arange(tokens) % DOCUMENT).int(),
        "cu_seqlens": torch.arange(0, tokens + 1, DOCUMENT, dtype=torch.int32),
        "masked_positions": masked,
        "labels": labels,
        "row_ids": torch.arange(ROWS) + ROWS * n,
    }
    return {key: value.cuda() for key, value in made.items()} | {"max_seqlen": DOCUMENT}


def step(model: MaskedLM, n: int, packed: dict[str, Any] | None = None) -> Tensor:
    with torch.autocast("cuda", torch.bfloat16):
        sums = model(packed or batch(n))
    (sums.objective / sums.predictions).backward()
    return (sums.loss / sums.predictions).detach()


@contextlib.contextmanager
def no_syncs() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bf16_follows_float32() -> None:
    half, whole = build(), build()
    with torch.autocast("cuda", enabled=False):
        sums = whole(batch(0))
        (sums.objective / sums.predictions).backward()
    torch.testing.assert_close(step(half, 0), sums.loss / sums.predictions, rtol=2e-3, atol=0)
    for (name, a), b in zip(half.named_parameters(), whole.parameters(), strict=True):
        assert a.dtype == a.grad.dtype == torch.float32  # master weights
        assert (a.grad - b.grad).norm() <= 0.03 * b.grad.norm(), name


@pytest.mark.parametrize("name", ["stable_adamw", "muon"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_does_not_wait_for_the_device(compiled: bool, name: str, tmp_path) -> None:
    torch.compiler.reset()
    model = build()
    if compiled:
        compile_model(model, "cuda", tmp_path)
    optimizer = build_optimizer(model, OptimizerConfig(name=name, lr=1e-3), compiled)
    optimizer.veto = torch.zeros((), device="cuda")
    batches = [batch(n) for n in range(5)]
    losses = []
    for n, packed in enumerate(batches):
        with no_syncs() if n > 1 else contextlib.nullcontext():
            losses.append(step(model, n, packed))
            optimizer.step()
            optimizer.zero_grad()
            figures = torch.stack([*optimizer.statistics(), optimizer.skipped])
    assert torch.stack(losses).isfinite().all()
    assert figures.isfinite().all()
    assert figures[-1] == 0


def test_compiled_layers_train_alike_and_are_compiled_once(monkeypatch, tmp_path) -> None:
    torch.compiler.reset()
    plain, compiled = build(), build()
    backend = CompileCounterWithBackend("inductor")
    native = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: native(self, backend=backend, **options)
    )
    compile_model(compiled, "cuda", tmp_path)
    counts = []
    for n in range(4):
        torch.testing.assert_close(step(compiled, n), step(plain, n), rtol=2e-3, atol=0)
        counts.append(backend.frame_count)
    assert counts[1:] == counts[1:2] * 3
    for (name, a), b in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 0.03 * b.grad.norm(), name


@pytest.mark.parametrize("compute", [{}, {"recompute_every": 1}], ids=str)
def test_memory_is_what_the_plan_says(compute: dict[str, int]) -> None:
    model = build(**compute)
    packed = batch(0)
    step(model, 0, packed)  # leaves its gradients
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(model, 0, packed)
    peak = torch.cuda.max_memory_allocated() - before
    memory = step_memory(
        CONFIG, CONFIG.vocab_size, ROWS * ROW, PREDICTED, ComputeConfig(**compute), "cuda"
    )
    parameters = sum(p.numel() for p in model.parameters())
    # Weights and gradients were there before; autocast's copies of the weights were not.
    expected = memory.activations + memory.logits + 2 * parameters
    assert peak == pytest.approx(expected, rel=0.2)


def test_dropout_masks_are_the_cpus() -> None:
    masks = [
        keep_mask(
            token_keys(5, torch.arange(3, device=device), 96),
            layer_keys(4, 66, torch.device(device))[2],
            66,
            0.1,
        ).cpu()
        for device in ("cpu", "cuda")
    ]
    assert torch.equal(*masks)


@pytest.mark.parametrize("compiled", [False, True])
def test_deterministic_training_repeats_its_bits(compiled: bool, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._inductor.config.patch(deterministic=False))
        stack.callback(torch.use_deterministic_algorithms, False)
        compute_deterministically()
        trained = []
        for _ in range(2):
            torch.compiler.reset()
            model = build()
            if compiled:
                compile_model(model, "cuda", tmp_path)
            optimizer = build_optimizer(model, OptimizerConfig(lr=1e-3), compiled)
            losses = []
            for n in range(4):
                losses.append(step(model, n))
                optimizer.step()
                optimizer.zero_grad()
            trained.append([*losses, *model.parameters()])
        for first, second in zip(*trained, strict=True):
            assert torch.equal(first, second)
