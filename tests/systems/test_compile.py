"""Compiled layers: found again by another process, and in a whole run, beside one without."""

import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from restomod.model.compile import compile_model
from tests.conftest import Tiny, Trainings, metrics
from tests.unit.model.test_encoder import batch
from tests.unit.model.test_options import build, step

STEPS = 4

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)


@needs_compiler
def test_a_compiled_run_trains_alike_and_continues_with_what_it_compiled(
    tiny: Tiny, train: Trainings, tmp_path: Path
) -> None:
    recipe = tiny.write(tmp_path / "recipe.yaml", phases__schedule={}, checkpoint__every_steps=2)
    words = [recipe, f"runs_dir={tmp_path}", f"cache_dir={tmp_path / 'cache'}"]
    made = []
    for steps in (2, STEPS):
        slots = f"phases.pretrain.slots={steps * 4 * 512}"
        code, text = train(*words, "run_name=compiled", "compute.compile=always", slots)
        assert code == 0, text
        libraries = set((tmp_path / "cache" / "compiled").rglob("*.so"))
        made.append(libraries)
    assert made[0]
    assert made[1] == made[0]  # the second process compiled nothing
    code, text = train(*words, "run_name=plain", f"phases.pretrain.slots={STEPS * 4 * 512}")
    assert code == 0, text
    compiled, plain = (metrics(tmp_path / name) for name in ("compiled", "plain"))
    assert [line["step"] for line in compiled] == [*range(1, STEPS + 1)]
    for a, b in zip(compiled, plain, strict=True):
        assert a["data_digest"] == b["data_digest"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@needs_compiler
def test_what_was_compiled_is_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As by the process that resumes a run: nothing is left in memory, all is in cache_dir."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is put back
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    losses, found = [], []
    for _ in range(2):
        torch._dynamo.reset()
        counters.clear()
        model = build().train()
        compile_model(model, "cpu", tmp_path)
        losses.append(step(model, batch([[30, 20], [64]]))[0])
        counts = counters["inductor"]
        found.append((counts["fxgraph_cache_hit"], counts["fxgraph_cache_miss"]))
    assert (tmp_path / "compiled").is_dir()
    assert found[0][0] == 0 < found[0][1]
    assert found[1] == (found[0][1], 0)
    assert torch.equal(*losses)
    torch._dynamo.reset()
