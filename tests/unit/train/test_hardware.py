"""What a run finds out about its device, and what is set for deterministic training (that it is
deterministic, tests/gpu shows)."""

import os

import pytest
import torch
import torch._inductor.config

from restomod.config import ModelConfig, PhaseConfig, Recipe
from restomod.cpu import measured_peak, memory_bytes
from restomod.model.attention.plan import plan_attention
from restomod.model.config import EncoderConfig
from restomod.model.memory import phase_memory, resident
from restomod.train import hardware
from restomod.train.hardware import compute_deterministically, peak_flops, warn_of_memory


def test_attention_compiler_and_torch_are_told(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")

    def deterministic() -> bool:
        config = EncoderConfig(layers=2, hidden_size=8, heads=2, intermediate_size=8, vocab_size=9)
        bounds = torch.tensor([0, 3, 5], dtype=torch.int32)
        positions = torch.tensor([0, 1, 2, 0, 1])
        return plan_attention(config, positions, bounds, 3, torch.float32, "auto").deterministic

    assert not deterministic()
    try:
        with torch._inductor.config.patch(deterministic=False):
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


GIB = 1 << 30


@pytest.mark.parametrize(
    ("cgroup", "limits", "gib"),
    [
        ("0::/\n", {}, 64),
        ("0::/\n", {"memory.max": "max\n"}, 64),
        ("0::/\n", {"memory.max": f"{8 * GIB}\n"}, 8),
        ("0::/job/step\n", {"job/memory.max": f"{6 * GIB}\n", "job/step/memory.max": "max"}, 6),
        ("0::/of/the/host\n", {"memory.max": f"{5 * GIB}\n"}, 5),
        (
            "4:cpuset:/\n3:cpu,memory:/job\n0::/\n",
            {"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
             "memory/job/memory.limit_in_bytes": f"{4 * GIB}\n"},
            4,
        ),
    ],
)  # fmt: skip
def test_memory_is_what_the_machine_or_the_control_group_has(tmp_path, cgroup, limits, gib):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal:  {64 * GIB // 1024} kB\nMemFree: 7 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for name, text in limits.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory_bytes(tmp_path / "proc", tmp_path / "cgroup") == gib * GIB


def test_phases_that_may_not_fit_are_warned_of(monkeypatch, caplog):
    model = ModelConfig(layers=2, hidden_size=64, heads=2, intermediate_size=96)
    phases = [
        PhaseConfig(name=name, row_tokens=1024, sequence_length=1024, batch_rows=64,
                    micro_batch_rows=rows)
        for name, rows in (("small", 1), ("large", 64))
    ]  # fmt: skip
    recipe = Recipe(model=model, phases=phases, device="cpu")
    small, large = (resident(phase_memory(recipe, p, 1000, "cpu", 1), "cpu") for p in phases)
    monkeypatch.setattr(hardware, "memory_bytes", lambda: int(small + large))
    warn_of_memory(recipe, phases, 1000, ranks=1, node_ranks=1)
    assert not caplog.records
    # Two ranks share the machine, and a buffer for the exchange comes on top.
    warn_of_memory(recipe, phases, 1000, ranks=2, node_ranks=2)
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "phase large: steps with micro-batches of 64 rows of 1,024 slots" in warning
    assert f"and a rank has {(small + large) / 2e9:.1f} GB" in warning
