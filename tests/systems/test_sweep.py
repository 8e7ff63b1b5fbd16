"""Sweeps with processes of their own: `restomod sweep`, killed and interrupted, and W&B's agent on
the same file."""

import json
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import Tiny, metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture
def file(tiny: Tiny, tmp_path, monkeypatch):
    """A sweep over two learning rates, that W&B's agent takes too."""
    monkeypatch.chdir(ROOT)
    recipe = tiny.write(
        tmp_path / "recipe.yaml",
        runs_dir=str(tmp_path),
        data__workers=0,
        phases__slots=200 * 4 * 512,
        logging={"wandb": {"mode": "offline"}},
    )
    sweep = {
        "name": "rates",
        "program": "train.py",
        "command": [
            "${env}", "python", "${program}", str(recipe),
            "run_name=rates-${oc.env:WANDB_RUN_ID}", "${args_no_hyphens}",
        ],
        "method": "grid",
        "metric": {"name": "eval/all/loss", "goal": "minimize"},
        "parameters": {
            "optimizer.lr": {"values": [1e-05, 0.003]},
            "optimizer.betas": {"value": [0.9, 0.95]},
        },
    }  # fmt: skip
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def start(file: Path, *options: str) -> subprocess.Popen:
    command = [BIN / "restomod", "sweep", file, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 75)]
)
def test_a_sweep_that_is_ended_has_its_trials_save_and_goes_on(file, tmp_path, number, code):
    folder = tmp_path / "rates"
    sweep = start(file, "--jobs", "2")
    try:
        while len(metrics(folder / "rates-000")) < 6 or len(metrics(folder / "rates-001")) < 6:
            assert sweep.poll() is None, sweep.communicate()
            time.sleep(0.05)
    finally:
        sweep.send_signal(number)
    assert sweep.wait(timeout=60) == code
    again = start(file, "--jobs", "2", "--json")
    printed, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    told = json.loads(printed)
    assert [trial["state"] for trial in told["trials"]] == ["done", "done"]
    assert told["trials"][0]["parameters"]["optimizer.lr"] == 0.003
    for name in ("rates-000", "rates-001"):
        resumed = metrics(folder / name, "resume")
        assert len(resumed) == 1
        assert resumed[0]["step"] >= 6  # nothing was lost
        assert [line["step"] for line in metrics(folder / name)] == list(range(1, 201))


class Server:
    """What W&B's agent asks of its server: a run for each learning rate, one after the other."""

    def __init__(self, sweep: dict) -> None:
        self.sweep_file = sweep
        self.waiting = [
            {
                "type": "run",
                "run_id": f"run{n}",
                "program": sweep["program"],
                "args": {
                    "optimizer.lr": {"value": lr},
                    "optimizer.betas": {"value": sweep["parameters"]["optimizer.betas"]["value"]},
                },
            }
            for n, lr in enumerate(sweep["parameters"]["optimizer.lr"]["values"])
        ]

    def sweep(self, sweep_id: str, specs: str) -> dict:
        return {"config": yaml.safe_dump(self.sweep_file)}

    def register_agent(self, host: str, sweep_id: str) -> dict:
        return {"id": "agent"}

    def agent_heartbeat(self, agent_id: str, figures: dict, running: dict) -> list[dict]:
        if running:
            return []
        return [self.waiting.pop(0)] if self.waiting else [{"type": "exit"}]


def test_wandbs_agent_runs_the_same_file(file, tmp_path, monkeypatch):
    from wandb.wandb_agent import Agent

    # The agent sets variables for its runs in its own environment.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_SWEEP_ID", "thesweep")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "agent"))
    monkeypatch.setattr(Agent, "POLL_INTERVAL", 0.5)
    Agent(Server(yaml.safe_load(file.read_text())), queue.Queue(), sweep_id="thesweep").run()
    for n, lr in enumerate((1e-5, 0.003)):
        run = tmp_path / f"rates-run{n}"
        recipe = yaml.safe_load((run / "config.yaml").read_text())
        assert recipe["optimizer"]["lr"] == lr
        assert recipe["optimizer"]["betas"] == [0.9, 0.95]
        assert len(metrics(run)) == 200
        # The run that W&B's server knows is the one that logs.
        assert list(run.glob(f"wandb/offline-run-*-run{n}"))
