"""What the plan says of memory and time on a CPU, and of checkpoints, beside what runs measure."""

import json
import os
import subprocess
import sys

import pytest

from restomod.config import ModelConfig, Recipe
from restomod.tools.plan.checkpoints import checkpoint_bytes
from tests.conftest import metrics

pytestmark = pytest.mark.slow

RUN = """
import json, re, sys, time
from restomod.cli import train_main
from restomod.train.step_metrics import StepMetrics
ends, batch_end = [], StepMetrics.batch_end
def timed(self, *arguments):
    ends.append(time.process_time())
    batch_end(self, *arguments)
StepMetrics.batch_end = timed
assert train_main(sys.argv[1:]) == 0
steps = [after - before for before, after in zip(ends[1:], ends[2:])]
peak = re.search("VmHWM: +([0-9]+)", open("/proc/self/status").read().replace("\\t", " "))
print(json.dumps([1024 * int(peak[1]), min(steps)]))
"""
PLAN = """
import json, sys
from restomod.data.tokenizer import load_tokenizer
from restomod.model.memory import phase_memory, resident
from restomod.recipe import load_recipe
from restomod.tools.plan.plan import make_plan
from restomod.tools.plan.parts import Target

recipe = load_recipe([sys.argv[1]], sys.argv[2:])
plan = make_plan(recipe, Target(1, 1))
memory = phase_memory(
    recipe, recipe.phases[0], load_tokenizer(recipe.tokenizer).vocab_size, "cpu", 1
)
assert "torch" not in sys.modules
print(json.dumps([resident(memory, "cpu"), plan.costs[0].step_s]))
"""
SMALL = {"layers": 2, "hidden_size": 64, "heads": 2, "intermediate_size": 96, "rows": 1}
WIDE = {"layers": 4, "hidden_size": 384, "heads": 6, "intermediate_size": 576, "rows": 1}
MANY = {"layers": 3, "hidden_size": 192, "heads": 3, "intermediate_size": 288, "rows": 2}


def measured(tiny, folder, sizes):
    """Return (what the plan says, what a run of 6 steps measures), both (bytes, seconds). The
    run's are of one thread's CPU: other processes lengthen what a clock shows of whole steps."""
    rows, steps = sizes["rows"], 6
    name = "-".join(map(str, sizes.values()))
    words = [
        str(tiny.write(folder / "recipe.yaml")),
        f"run_name=plan-{name}",
        *(f"model.{key}={value}" for key, value in sizes.items() if key != "rows"),
        "device=cpu",
        "data.workers=0",
        "evaluation.streams={}",
        "checkpoint.every_steps=1000",
        "phases.0.row_tokens=4096",
        "phases.0.sequence_length=256",
        "phases.0.schedule.warmup=0",
        "phases.0.schedule.decay=0",
        f"phases.0.batch_rows={2 * rows}",
        f"phases.0.micro_batch_rows={rows}",
        f"phases.0.slots={steps * 2 * rows * 4096}",
    ]

    def run(code):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run(PLAN), run(RUN)


@pytest.fixture(scope="module")
def figures(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    return [measured(tiny, folder, sizes) for sizes in (SMALL, MANY, WIDE)]


def test_a_run_takes_the_memory_that_the_plan_says(figures):
    """Of which a gigabyte is Python's and torch's; tests/unit/model compares tensors alone."""
    for planned, run in figures:
        assert run[0] == pytest.approx(planned[0], rel=0.15), figures
    more = figures[-1][1][0] - figures[0][1][0]
    assert more == pytest.approx(figures[-1][0][0] - figures[0][0][0], rel=0.3), figures
    assert more > 0.5e9


def test_steps_take_the_time_that_the_plan_says_within_a_factor_of_two(figures):
    """The smallest and the largest differ by a factor of eight or more."""
    for planned, run in figures:
        assert planned[1] / 2 < run[1] < planned[1] * 2, figures
    assert figures[-1][1][1] > 8 * figures[0][1][1]


def test_checkpoints_are_as_large_as_the_plan_says(tiny, figures):
    for sizes in (SMALL, WIDE):
        name = "-".join(map(str, sizes.values()))
        (line,) = metrics(tiny.folder / "runs" / f"plan-{name}", "checkpoint")
        model = {key: value for key, value in sizes.items() if key != "rows"}
        recipe = Recipe(model=ModelConfig(**model))
        said = checkpoint_bytes(recipe, 512)
        assert said < line["bytes"] < 1.05 * said + 1e6
