"""A whole run with compiled layers, stopped and continued, beside one without."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import Tiny, Trainings, metrics

STEPS = 4


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
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
