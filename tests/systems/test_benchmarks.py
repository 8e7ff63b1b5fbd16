"""Every benchmark runs, small and short, and leaves the figures that the targets read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.parts import PARTS
from benchmarks.targets import TARGETS

ROOT = Path(__file__).parents[2]
LARGE = {"step-17m", "step-150m"}
"""Parts whose quick form is of another size than the targets'."""


@pytest.mark.slow
def test_every_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for part in PARTS:
        if part.gpu:
            continue
        result = json.loads((tmp_path / f"{part.name}.json").read_text())
        assert "failed" not in result, part.name
        assert result["quick"] is True
        wanted = {target.figure.name for target in TARGETS if target.part == part.name}
        if part.name not in LARGE:
            assert wanted - {"compiled / fused"} <= result["figures"].keys(), part.name
    page = (tmp_path / "performance.md").read_text()
    assert "**Failed**" not in page
    assert "quick: says nothing" in page
