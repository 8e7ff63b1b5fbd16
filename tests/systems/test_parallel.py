"""Runs that change how ranks share the model, compiled layers under FSDP, and launchers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Tiny, Trainings, metrics
from tests.distributed.test_world_size import assert_same

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def single(tiny: Tiny, train: Trainings, tmp_path_factory: pytest.TempPathFactory):
    recipe = tiny.write(tmp_path_factory.mktemp("recipe") / "recipe.yaml")
    code, text = train(recipe, "run_name=single")
    assert code == 0, text
    return recipe, metrics(tiny.folder / "runs" / "single")


def test_run_goes_on_with_another_strategy_and_back(tiny, train, single):
    recipe, expected = single
    folder = tiny.folder / "runs" / "changing"
    for strategy, world_size, steps in (("ddp", 2, 8), ("fsdp", 4, 13), ("hsdp", 2, 18)):
        code, text = train(
            recipe,
            "run_name=changing",
            f"parallel.strategy={strategy}",
            world_size=world_size,
            kill_when=lambda steps=steps: len(metrics(folder)) >= steps,
        )
        assert code == -9, text
    code, text = train(recipe, "run_name=changing")
    assert code == 0, text
    assert_same(metrics(folder), expected)
    resumes = metrics(folder, "resume")
    assert [line["world_size"] for line in resumes] == [4, 2, 1]
    assert all(line["from_step"] >= 5 and line["changed"] == [] for line in resumes)


def test_compiled_and_recomputed_layers_are_sharded(tiny, train, single):
    recipe, expected = single
    folder = tiny.folder / "runs" / "compiled"
    code, text = train(
        recipe,
        "run_name=compiled",
        "parallel.strategy=fsdp",
        "compute={compile: always, recompute_every: 2}",
        world_size=2,
    )
    assert code == 0, text
    assert_same(metrics(folder), expected)


def test_composers_launcher_starts_two_ranks(tiny, single):
    recipe, expected = single
    composer = Path(sys.executable).with_name("composer")
    done = subprocess.run(
        [composer, "-n", "2", ROOT / "train.py", recipe, "run_name=by-composer"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tiny.folder / "runs" / "by-composer"
    assert metrics(folder, "start")[0]["world_size"] == 2
    assert_same(metrics(folder), expected)


def test_torchrun_starts_two_ranks(tiny, single):
    recipe, expected = single
    torchrun = Path(sys.executable).with_name("torchrun")
    done = subprocess.run(
        [torchrun, "--nproc-per-node=2", ROOT / "train.py", recipe, "run_name=torchrun"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_same(metrics(tiny.folder / "runs" / "torchrun"), expected)


def test_srun_tasks_train_together(tiny, single):
    """Tasks as srun starts them: with nothing but Slurm's variables."""
    recipe, expected = single
    tasks = []
    for rank in range(2):
        slurm = {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_TASKS_PER_NODE": "2",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NODEID": "0",
        }
        command = [sys.executable, ROOT / "train.py", recipe, "run_name=srun"]
        tasks.append(
            subprocess.Popen(
                [*command, "parallel.strategy=hsdp"],
                env={**os.environ, **slurm},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for task in tasks:
        _, errors = task.communicate(timeout=300)
        assert task.returncode == 0, errors
    folder = tiny.folder / "runs" / "srun"
    assert metrics(folder, "start")[0]["world_size"] == 2
    assert_same(metrics(folder), expected)
