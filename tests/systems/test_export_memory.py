"""Export and averaging hold one model in memory, whatever the optimizer's state weighs."""

import dataclasses
import json
import subprocess
import sys
import time

import pytest
import torch

from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.train.checkpoints.manifest import FORMAT, checkpoint_folder
from restomod.train.checkpoints.saving import Snapshot, write_checkpoint

CONFIG = EncoderConfig(
    layers=16, hidden_size=512, heads=8, intermediate_size=768, decoder_bias=False
)
EXPORT = """
from restomod.tools.export.export import export_run
export_run(Path(sys.argv[1]) / "run")
"""
AVERAGE = """
from restomod.config import Recipe
from restomod.tools.average import average_run
run = Path(sys.argv[1]) / "run"
average_run(run, Recipe(run_name="run"), run / "averaged", last=2)
"""
MEASURE = """
import sys
from pathlib import Path
import restomod.tools.average, restomod.tools.export.export, torch.distributed.checkpoint
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
MaskedLM(EncoderConfig(layers=2, hidden_size=32, heads=2, intermediate_size=48, vocab_size=64))
def memory(field):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(field)]
    return int(line.split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = memory("VmRSS")
{work}
print(memory("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two checkpoints with moments, and the bytes of its model's weights."""
    folder = tmp_path_factory.mktemp("runs")
    model = MaskedLM(CONFIG)
    weights = model.state_dict()
    moments = {
        f"{name}.{moment}": torch.zeros_like(w) for name, w in weights.items() for moment in "mv"
    }
    for step in (1, 2):
        about = {"format": FORMAT, "step": step, "slots": step, "phase": "x", "evaluation": None}
        snapshot = Snapshot(
            step,
            {"model": weights, "optimizer": moments},
            {"rows": 0, "lanes": {}},
            dataclasses.asdict(CONFIG),
            about,
            time.perf_counter(),
        )
        write_checkpoint(snapshot, checkpoint_folder(folder / "run", step), None)
    size = sum(w.nbytes for w in weights.values())
    assert sum(w.numel() for w in weights.values()) >= 60e6
    return folder, size


@pytest.mark.parametrize(("work", "copies"), [(EXPORT, 1.6), (AVERAGE, 2.2)])
def test_memory_is_near_one_copy_of_the_weights(run, work, copies):
    folder, size = run
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(work=work), folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout.splitlines()[-1])
    assert 0.9 * size < used < copies * size, f"{used / size:.2f} copies"
