"""The process that talks to W&B: what it sends of a run that goes back, ends or is killed."""

import json
import os
import subprocess
import sys
import time

import pytest

from restomod.config import Recipe, WandbConfig
from restomod.recipe import save_recipe
from restomod.train.watching.wandb_listener import PROCESS, Wandb, masked, settings, wandb_mode
from tests.wandb_files import wandb_files


@pytest.fixture
def recipe(tmp_path):
    made = Recipe(run_name="run", runs_dir=str(tmp_path), store=str(tmp_path / "store"))
    made.logging.wandb.mode = "offline"
    made.run_folder.mkdir()
    save_recipe(made, made.run_folder / "config.yaml")
    return made


def at(event, step, **fields):
    return {"event": event, "time_s": 1.0, "step": step, "tokens": step * 100, **fields}


def trained(*steps):
    return [at("train", step, loss=float(step)) for step in steps]


def sent(recipe, *lines):
    """Have a process send lines; return the last file."""
    wandb = Wandb(recipe)
    for line in lines:
        wandb.heard(line)
    wandb.close()
    return wandb_files(recipe.run_folder)[-1]


def test_a_run_that_goes_back_sends_each_step_once_and_says_so(recipe):
    start = at("start", 0, run_id="run-1")
    resume = at("resume", 2, run_id="run-1")
    back = at("rollback", 2, spike_step=5, loss=9.0, deviations=30.0)
    file = sent(
        recipe, start, *trained(1, 2, 3, 4, 5), resume, back, *trained(3, 4, 5, 6), at("end", 6)
    )
    train = [(row["tokens"], row["train/loss"]) for row in file.rows if "train/loss" in row]
    assert train == [(step * 100, float(step)) for step in range(1, 7)]
    (spike,) = [row for row in file.rows if "events/rollback" in row]
    assert spike["rollback/deviations"] == 30.0
    assert [alert.title for alert in file.alerts] == ["spike", "end"]
    assert file.exit_code == 0


def test_the_next_process_goes_on_where_the_last_one_was(recipe):
    first = sent(recipe, at("start", 0, run_id="run-1"), *trained(1, 2, 3))
    time.sleep(1.1)  # W&B names a file by the second
    second = sent(recipe, at("resume", 2, run_id="run-1"), *trained(3, 4))
    assert (first.id, second.id) == ("run-1", "run-1")
    assert [row["train/step"] for row in second.rows if "train/loss" in row] == [4]
    time.sleep(1.1)
    third = sent(recipe, at("start", 0, run_id="run-2"), *trained(1, 2))
    assert third.id == "run-2"
    assert [row["train/step"] for row in third.rows if "train/loss" in row] == [1, 2]


def test_what_cannot_be_sent_is_left_out(recipe, capfd):
    lines = [at("start", 0, run_id="run-1"), at("eval", 1, domains="?"), *trained(1)]
    file = sent(recipe, *lines)
    assert [row["train/step"] for row in file.rows if "train/loss" in row] == [1]
    assert "W&B did not take" in capfd.readouterr().err


def test_a_killed_run_is_one_that_failed(recipe, tmp_path):
    """Its training process ends without a word."""
    lines = [at("start", 0, run_id="run-1"), *trained(1, 2)]
    code = (
        "import os\n"
        "from restomod.config import Recipe\n"
        "from restomod.train.watching.wandb_listener import Wandb\n"
        f"recipe = Recipe(run_name='run', runs_dir={str(tmp_path)!r})\n"
        "recipe.logging.wandb.mode = 'offline'\n"
        "wandb = Wandb(recipe)\n"
        f"for line in {lines!r}: wandb.heard(line)\n"
        "os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ)
    assert done.returncode == 9
    end = time.monotonic() + 30
    while not (files := wandb_files(recipe.run_folder)) or files[0].exit_code is None:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert files[0].exit_code == 1
    assert [row["train/step"] for row in files[0].rows if "train/loss" in row] == [1, 2]


def test_settings_hold_no_password_and_say_where_checkpoints_go(recipe, tmp_path):
    told = settings(recipe, "run-1")
    assert told["checkpoints"] == f"file://{tmp_path}/store/run/checkpoints"
    recipe.store = "s3://key:s3cr3t@bucket/runs"
    recipe.data.streams = {"a": {"path": "https://me:s3cr3t@host/a"}}
    text = json.dumps(settings(recipe, "run-1"))
    assert "s3://***@bucket/runs/run/checkpoints" in text
    assert "s3cr3t" not in text
    assert masked(["http://host/a@b", "me@host"]) == ["http://host/a@b", "me@host"]


def test_the_process_loads_neither_torch_nor_wandb_before_it_knows_its_run():
    code = f"import sys, {PROCESS}; assert not {{'torch', 'composer', 'wandb'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "key"}, "online"),
        ({"WANDB_SWEEP_ID": "started by the agent, which has logged in"}, "online"),
    ],
)
def test_wandb_is_online_where_there_is_a_login(monkeypatch, variables, mode):
    for name in ("WANDB_API_KEY", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(WandbConfig()) == mode
