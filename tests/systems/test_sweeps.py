"""A sweep whose trials are real runs, in children that need not import torch anew."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml

from restomod.sweep.run import run_sweep
from restomod.tools.record.metrics_log import read_log
from tests.conftest import Tiny, metrics
from tests.integration.test_resume import exactly
from tests.ranks import fork_server, train_in_child

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Child:
    def __init__(self, process):
        self._process = process

    def code(self):
        return self._process.exitcode

    def stop(self):
        os.kill(self._process.pid, signal.SIGTERM)


class Children:
    """Runs trials as the other tests run theirs."""

    stops, together = True, 0

    def start(self, tasks):
        return [self._start(task) for task in tasks]

    def _start(self, task):
        task.log.parent.mkdir(exist_ok=True)
        words = task.command[task.command.index("train.py") + 1 :]
        process = fork_server().Process(target=train_in_child, args=(words, {}, str(task.log)))
        process.start()
        return Child(process)


@pytest.fixture
def sweep(tiny: Tiny, tmp_path, monkeypatch):
    """Run a sweep over learning rates, and heads of which some do not fit."""
    monkeypatch.chdir(ROOT)
    recipe = tiny.write(tmp_path / "recipe.yaml", runs_dir=str(tmp_path), data__workers=0)
    file = tmp_path / "rates.yaml"
    content = {
        "program": "train.py",
        "command": ["${env}", "python", "${program}", str(recipe), "${args_no_hyphens}"],
        "method": "grid",
        "metric": {"name": "eval/prose/loss"},
        "parameters": {
            "optimizer.lr": {"values": [1e-5, 3e-3]},
            "model.heads": {"values": [2, 3]},
        },
    }

    def run(**changes):
        file.write_text(yaml.safe_dump({**content, **changes}))
        printed: list[str] = []
        code = run_sweep(file, 2, True, printed.append, lambda setting: Children())
        return code, json.loads("".join(printed))

    return run


def test_a_sweep_that_is_stopped_ends_as_if_it_had_not_been(sweep, tiny, train, tmp_path):
    folder = tmp_path / "rates"

    def interrupt():
        def begun():
            return [run for run in folder.glob("rates-*") if len(metrics(run)) >= 6]

        while not begun():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, told = sweep()
    thread.join()
    assert code == 75
    assert "unfinished" in {trial["state"] for trial in told["trials"]}
    assert len(list(folder.glob("rates-*/REQUEUE"))) >= 1

    code, told = sweep()
    assert code == 0
    by_state = {}
    for trial in told["trials"]:
        by_state.setdefault(trial["state"], []).append(trial)
    assert {state: len(trials) for state, trials in by_state.items()} == {
        "done": 2,
        "impossible": 2,
    }
    best = by_state["done"][0]
    assert best["parameters"]["optimizer.lr"] == 3e-3
    assert best["steps"] == 24
    run = Path(best["run_folder"])
    last = metrics(run, "eval")[-1]["domains"]["prose"]["loss"]
    assert best["value"] == last
    assert read_log(run / "metrics.jsonl").event_counts["resume"] == 1

    code, text = train(tmp_path / "recipe.yaml", "optimizer.lr=0.003", "run_name=unbroken")
    assert code == 0, text
    assert exactly(run) == exactly(tmp_path / "unbroken")
    # Each trial is an ordinary run.
    assert (run / "report.html").is_file()
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"] == 3e-3
    page = (folder / "sweep.html").read_text()
    assert "What differs between the recipes" in page
    assert "http" not in page.replace("http-equiv", "")


def test_trials_that_are_worse_stop_with_a_checkpoint(sweep, tmp_path):
    code, told = sweep(
        parameters={
            "optimizer.lr": {"values": [3e-3, 1e-6, 1e-7]},
            "phases.pretrain.slots": {"value": 60 * 4 * 512},
        },
        early_terminate={"type": "hyperband", "min_iter": 3},
        metric={"name": "train/loss"},
        name="early",
    )
    assert code == 0
    assert told["trials"][0]["parameters"]["optimizer.lr"] == 3e-3
    stopped = [trial for trial in told["trials"] if trial["state"] == "stopped early"]
    assert stopped
    for trial in stopped:
        run = Path(trial["run_folder"])
        assert 3 <= trial["steps"] < 60
        assert (run / "checkpoints" / f"step-{trial['steps']:08d}" / "manifest.json").is_file()
        assert not (run / "REQUEUE").exists()
