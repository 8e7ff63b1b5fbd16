"""What is set for deterministic training (that it is deterministic, tests/gpu shows)."""

import os

import torch
import torch._inductor.config

from restomod.cpu import measured_peak
from restomod.model.attention.plan import plan_attention
from restomod.model.config import EncoderConfig
from restomod.train.hardware import compute_deterministically, peak_flops


def test_attention_compiler_and_torch_are_told(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setattr(torch._inductor.config, "deterministic", False)

    def deterministic() -> bool:
        config = EncoderConfig(layers=2, hidden_size=8, heads=2, intermediate_size=8, vocab_size=9)
        bounds = torch.tensor([0, 3, 5], dtype=torch.int32)
        positions = torch.tensor([0, 1, 2, 0, 1])
        return plan_attention(config, positions, bounds, 3, torch.float32, "auto").deterministic

    assert not deterministic()
    try:
        compute_deterministically()
        assert deterministic()
        assert torch._inductor.config.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_cpus_peak_is_the_one_that_is_planned_with_for_so_many_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    alone = measured_peak(1)
    assert peak_flops("cpu") == measured_peak(3)
    assert 2 * alone < measured_peak(3) < 4 * alone
    # A thread reaches between a tenth and all of what its vector units could.
    assert 1e9 < alone < 1e12
