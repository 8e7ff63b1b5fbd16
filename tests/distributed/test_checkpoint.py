"""Several ranks save one checkpoint, fail as one, and read what any number of ranks wrote."""

import contextlib
import json
import os
import subprocess

import pytest

from restomod import load_model
from restomod.train.checkpoints.manifest import newest_checkpoint, verify
from tests.conftest import metrics


def checkpoints(run_folder):
    folders = sorted((run_folder / "checkpoints").glob("step-*"))
    return [folder for folder in folders if (folder / "manifest.json").exists()]


def is_saving(run_folder):
    """Return whether a checkpoint is being written while another one is whole."""
    whole = checkpoints(run_folder)
    states = sorted((run_folder / "checkpoints").glob("step-*/state/*"))
    return bool(whole and states and states[-1].parents[1] > whole[-1])


def test_kill_during_a_save_leaves_the_one_before_and_another_world_goes_on(tiny, train, tmp_path):
    recipe = tiny.write(tmp_path / "recipe.yaml")
    code, text = train(recipe, f"runs_dir={tmp_path}", "run_name=unbroken")
    assert code == 0, text
    words = [recipe, f"runs_dir={tmp_path}", "run_name=killed"]
    folder = tmp_path / "killed"
    code, text = train(
        *words,
        "checkpoint.every_steps=1",
        world_size=2,
        kill_when=lambda: is_saving(folder),
    )
    assert code == -9, text
    _, manifest = newest_checkpoint(folder)
    written = {name for name in manifest["files"] if name.startswith("state/__")}
    assert written == {"state/__0_0.distcp", "state/__1_0.distcp"}
    assert manifest["world_size"] == 2
    code, text = train(*words)
    assert code == 0, text
    assert metrics(folder, "resume")[-1]["from_step"] == manifest["step"]
    lines, expected = metrics(folder), metrics(tmp_path / "unbroken")
    assert [line["data_digest"] for line in lines] == [line["data_digest"] for line in expected]
    for line, other in zip(lines[:20], expected[:20], strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-5)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and a function that changes its size in kB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(kilobytes, *options):
        words = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={kilobytes}k"])]
        return subprocess.run([*words, "tmpfs", folder], check=False).returncode

    if os.geteuid() != 0 or resize(2000):
        pytest.skip("needs the right to mount a file system")
    yield folder, lambda kilobytes: resize(kilobytes, "remount")
    subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk_stops_all_ranks_with_one_message_and_the_run_goes_on_later(
    tiny, train, tmp_path, small_disk
):
    disk, resize = small_disk
    recipe = tiny.write(tmp_path / "recipe.yaml")
    words = [recipe, f"runs_dir={disk}", "run_name=full", "checkpoint.keep=9"]
    code, text = train(*words, world_size=2)
    assert code == 2, text
    assert "the disk is full" in text
    assert "Traceback" not in text
    assert len([line for line in text.splitlines() if line.startswith("error: ")]) == 1
    whole = checkpoints(disk / "full")
    assert whole
    assert [verify(folder)[0] for folder in whole] == [""] * len(whole)
    resize(20_000)
    code, text = train(*words, world_size=2)
    assert code == 0, text
    resumed = metrics(disk / "full", "resume")[-1]["from_step"]
    assert resumed == json.loads((whole[-1] / "manifest.json").read_text())["step"]
    assert load_model(disk / "full").config.layers == 3


def test_full_disk_at_the_start_is_one_message_of_all_ranks(tiny, train, tmp_path, small_disk):
    disk, _ = small_disk
    recipe = tiny.write(tmp_path / "recipe.yaml")
    with contextlib.suppress(OSError), (disk / "ballast").open("wb") as ballast:
        while True:
            ballast.write(bytes(4096))
    code, text = train(recipe, f"runs_dir={disk}", world_size=2)
    assert code == 2, text
    assert "Traceback" not in text
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "the disk is full" in error
    assert "Training has not begun" in error
