"""Runs that are asked to stop under each launcher, as the cluster does it: with the launcher's own
processes, which import everything themselves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from restomod.train.checkpoints.manifest import newest_checkpoint
from tests.conftest import Tiny, Trainings, metrics
from tests.integration.test_resume import exactly

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "composer": [BIN / "composer", "-n", "2"],
    "torchrun": [BIN / "torchrun", "--standalone", "--nproc-per-node", "2"],
}


@pytest.fixture(scope="module")
def unbroken(tiny: Tiny, train: Trainings, tmp_path_factory: pytest.TempPathFactory):
    """The recipe, and the folder of a run on two ranks that nothing disturbed."""
    recipe = tiny.write(tmp_path_factory.mktemp("recipe") / "recipe.yaml")
    code, text = train(recipe, "run_name=two-ranks", world_size=2)
    assert code == 0, text
    return recipe, tiny.folder / "runs" / "two-ranks"


def ranks(launcher: subprocess.Popen) -> dict[int, psutil.Process]:
    """Return a launcher's ranks by number."""
    children = psutil.Process(launcher.pid).children()
    found = {child.environ().get("RANK"): child for child in children}
    return {int(rank): child for rank, child in found.items() if rank is not None}


def stop_launcher(launcher: subprocess.Popen, folder: Path) -> None:
    launcher.send_signal(signal.SIGTERM)


def stop_last_rank(launcher: subprocess.Popen, folder: Path) -> None:
    ranks(launcher)[1].send_signal(signal.SIGUSR1)


def stop_by_file(launcher: subprocess.Popen, folder: Path) -> None:
    (folder / "STOP").touch()


LATE = """
import atexit, os, time
if os.environ.get("RANK") == "0":
    atexit.register(time.sleep, 2)
"""


@pytest.mark.parametrize(
    ("launcher", "stop", "code"),
    [
        ("composer", stop_launcher, 75),
        ("composer", stop_last_rank, 75),
        ("torchrun", stop_launcher, 1),
        ("torchrun", stop_by_file, 0),
    ],
)
def test_ranks_save_and_ask_for_requeue(tiny, train, unbroken, tmp_path, launcher, stop, code):
    """Though rank 0 leaves two seconds later than rank 1."""
    recipe, expected = unbroken
    folder = tiny.folder / "runs" / tmp_path.name
    (tmp_path / "sitecustomize.py").write_text(LATE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*LAUNCHERS[launcher], ROOT / "train.py", recipe, f"run_name={folder.name}"],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path},
        )
    while process.poll() is None and len(metrics(folder)) < 7:
        time.sleep(0.01)
    stop(process, folder)
    process.wait(timeout=240)
    text = (tmp_path / "log").read_text()
    assert process.returncode == code, text
    step = json.loads((folder / "REQUEUE").read_text())["step"]
    assert newest_checkpoint(folder)[1]["step"] == step == len(metrics(folder))
    code, text = train(recipe, f"run_name={folder.name}", world_size=2)
    assert code == 0, text
    assert not (folder / "REQUEUE").exists()
    assert exactly(folder) == exactly(expected)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_torchrun_restarts_killed_ranks_and_no_number_changes(
    tiny, train, unbroken, tmp_path, strategy
):
    recipe, _ = unbroken
    words = (recipe, f"parallel.strategy={strategy}")
    code, text = train(*words, f"run_name=whole-{strategy}", world_size=2)
    assert code == 0, text
    folder = tiny.folder / "runs" / f"restarted-{strategy}"
    options = ["--max-restarts", "3", ROOT / "train.py", *words, f"run_name={folder.name}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*LAUNCHERS["torchrun"], *options], stdout=log, stderr=log)
    for killed, step in ((1, 8), (0, 16)):
        while process.poll() is None and len(metrics(folder)) < step:
            time.sleep(0.01)
        ranks(process)[killed].kill()
    assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()
    assert [line["step"] for line in metrics(folder)] == list(range(1, 25))
    assert exactly(folder) == exactly(folder.with_name(f"whole-{strategy}"))
    resumes = [line["from_step"] for line in metrics(folder, "resume")]
    assert len(resumes) == 2
    assert resumes[0] >= 5
    assert resumes[1] >= 10


def test_ranks_whose_torchrun_is_killed_save_and_the_next_command_waits_for_them(
    tiny, train, unbroken, tmp_path
):
    recipe, expected = unbroken
    folder = tiny.folder / "runs" / "orphaned"
    words = (recipe, f"run_name={folder.name}")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*LAUNCHERS["torchrun"], ROOT / "train.py", *words], stdout=log, stderr=log
        )
    while process.poll() is None and len(metrics(folder)) < 7:
        time.sleep(0.01)
    process.kill()
    process.wait()
    code, text = train(*words, world_size=2)
    assert code == 0, text
    assert "lost launcher: " in (tmp_path / "log").read_text()  # whichever rank sees it first
    assert len(metrics(folder, "resume")) == 1
    assert exactly(folder) == exactly(expected)
