"""The memory model against the peaks that PyTorch's allocator reports, and, for CUDA, against the
tensors that a forward pass on a made-up device keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

import restomod.kernels.glu
import restomod.kernels.norm
from restomod.config import ComputeConfig, ModelConfig
from restomod.model.attention.backends import BACKENDS
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.memory import (
    layer_parameters,
    moments_per_parameter,
    parameters,
    step_memory,
)
from restomod.optim.build import build_optimizer
from restomod.recipe import load_recipe

TOKENS, PREDICTED = 2048, 614


def batch() -> dict[str, torch.Tensor | int]:
    return {
        "input_ids": torch.arange(TOKENS) % 1000,
        "position_ids": (torch.arange(TOKENS) % 512).int(),
        "cu_seqlens": torch.arange(0, TOKENS + 1, 512, dtype=torch.int32),
        "max_seqlen": 512,
        "masked_positions": torch.arange(PREDICTED),
        "labels": torch.arange(PREDICTED) % 1000,
        "row_ids": torch.zeros(1, dtype=torch.int64),
    }


def peak_bytes(model: MaskedLM, folder: Path) -> int:
    """Return the most that a second step allocates over what the first has left."""
    model(batch()).objective.backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(batch()).objective.backward()
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    first = min(events, key=lambda event: event["ts"])["args"]
    before = first["Total Allocated"] - first["Bytes"]
    return max(event["args"]["Total Allocated"] for event in events) - before


@pytest.mark.parametrize(
    ("shape", "vocabulary", "compute", "options"),
    [
        ((4, 256, 384), 30_000, ComputeConfig(), {}),
        ((4, 256, 384), 30_000, ComputeConfig(logits_mb=10), {}),
        ((2, 128, 192), 200_000, ComputeConfig(logits_mb=64), {}),
        ((6, 64, 256), 1_000, ComputeConfig(), {}),
        ((6, 256, 384), 2_000, ComputeConfig(recompute_every=1), {}),
        ((6, 256, 384), 2_000, ComputeConfig(recompute_every=1, recompute_keep="attention"), {}),
        ((6, 256, 384), 2_000, ComputeConfig(recompute_every=2, recompute_keep="products"), {}),
        ((7, 256, 384), 2_000, ComputeConfig(recompute_every=3), {}),
        ((6, 256, 384), 2_000, ComputeConfig(), {"norm": "rmsnorm"}),
        ((3, 256, 384), 2_000, ComputeConfig(), {"local_window": 1024}),
        ((3, 256, 384), 2_000, ComputeConfig(), {"positions": "alibi"}),
        ((4, 256, 384), 2_000, ComputeConfig(), {"global_every": 1, "attention_dropout": 0.0}),
    ],
    ids=str,
)
def test_the_estimate_is_what_a_step_allocates(shape, vocabulary, compute, options, tmp_path):
    layers, hidden, intermediate = shape
    config = EncoderConfig(
        layers=layers,
        hidden_size=hidden,
        heads=4,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        **options,
    )
    model = MaskedLM(config).train()
    model.compute_as(compute)
    memory = step_memory(config, vocabulary, TOKENS, PREDICTED, compute, "cpu")
    assert memory.activations + memory.logits == pytest.approx(peak_bytes(model, tmp_path), rel=0.1)
    assert memory.weights == memory.gradients == 4 * sum(parameters(config, vocabulary))


class Nothing:
    """Stands in for a Triton kernel: takes a launch and does nothing."""

    def __getitem__(self, grid):
        return lambda *arguments, **constants: None


def test_on_cuda_the_activations_are_what_the_backward_pass_finds(monkeypatch):
    """Shapes and dtypes decide, so a fake device and kernels that compute nothing will do."""
    for module in (restomod.kernels.glu, restomod.kernels.norm):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Nothing())
    monkeypatch.setattr(BACKENDS["varlen"], "missing", lambda: "")
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    config = EncoderConfig(
        layers=5, hidden_size=256, heads=4, intermediate_size=384, vocab_size=5000
    )
    compute = ComputeConfig(attention="varlen")
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[id(tensor.untyped_storage())] = tensor.untyped_storage()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        model = MaskedLM(config).train()
        model.compute_as(compute)
        tensors = batch()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cuda", torch.bfloat16),
        ):
            model(tensors)
        weights = {id(parameter.untyped_storage()) for parameter in model.parameters()}
        found = sum(storage.nbytes() for key, storage in kept.items() if key not in weights)
    casts = 2 * (parameters(config, 0)[0])  # bf16 copies of the layers' weights
    loss = 4 * (parameters(config, 5000)[1])  # the decoder's gradient
    memory = step_memory(config, 5000, TOKENS, PREDICTED, compute, "cuda")
    assert memory.activations == pytest.approx(found - casts - loss, rel=0.1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shards_divide_what_lasts_and_gather_a_layer_at_a_time(device):
    config = ModelConfig(layers=22)
    whole, shared, kept = (
        step_memory(config, 50_000, TOKENS, PREDICTED, ComputeConfig(), device, *sharding)
        for sharding in ((), (8,), (8, False))
    )
    count = sum(parameters(config, 50_000))
    assert shared.weights == shared.gradients == 4 * count / 8
    assert shared.optimizer == whole.optimizer / 8
    assert shared.activations == whole.activations
    assert whole.exchange == 0
    x = {"cpu": 4, "cuda": 2}[device]
    layer = layer_parameters(config)
    assert kept.exchange - shared.exchange == pytest.approx(20 * x * layer)
    rest = {"cpu": 4, "cuda": 4 + 2}[device] * (count - 22 * layer)
    assert shared.exchange == pytest.approx(rest + 3 * x * layer)
    assert shared.peak < kept.peak < whole.peak


def test_ddp_copies_gradients_into_buckets():
    config = ModelConfig(layers=2)
    alone, beside = (
        step_memory(config, 1000, TOKENS, PREDICTED, ComputeConfig(), "cuda", ranks=ranks)
        for ranks in (1, 8)
    )
    assert alone.exchange == 0
    assert beside.exchange == beside.gradients == 4 * sum(parameters(config, 1000))


def test_the_optimizer_holds_what_the_model_of_memory_says(tiny, tmp_path):
    """After a step, the optimizer's states are as large as `moments_per_parameter` has it."""
    for name in ("stable_adamw", "muon"):
        recipe = load_recipe([tiny.write(tmp_path / "r.yaml")], [f"optimizer.name={name}"])
        config = EncoderConfig(**vars(recipe.model), vocab_size=512)
        model = MaskedLM(config)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer = build_optimizer(model, recipe.optimizer, compiled=False)
        optimizer.step()
        sizes = [
            tensor.nbytes
            for state in optimizer.state.values()
            for tensor in state.values()
            if torch.is_tensor(tensor) and tensor.numel() > 1
        ]
        count = sum(parameter.numel() for parameter in model.parameters())
        expected = 4 * count * moments_per_parameter(recipe, 512)
        assert sum(sizes) == pytest.approx(expected, rel=0.01), name
