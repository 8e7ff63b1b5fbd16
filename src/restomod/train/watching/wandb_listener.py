"""Weights & Biases, in a process of its own (`wandb_process.py`), which this module starts and
feeds with the lines of metrics.jsonl.

A server that hangs, a client that crashes or a slow disk is then that process's trouble alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import restomod
from restomod.config import Recipe, WandbConfig
from restomod.train.checkpoints.manifest import checkpoint_folder
from restomod.train.watching.background import Line

PROCESS = "restomod.train.watching.wandb_process"
CLOSE = "close"
"""Event of the last line."""
ANSWER_S = 60.0
"""How long the end of a run waits for it, at most."""


def wandb_mode(config: WandbConfig) -> str:
    """Return online, offline or disabled."""
    if config.mode == "auto":
        # W&B's agent has logged in, in whatever way, before it starts a run.
        known = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_SWEEP_ID")
        return "online" if known else "offline"
    return config.mode


class Wandb:
    """Passes lines on to the process; starts it when the run's first line comes."""

    name = "W&B"

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._process: subprocess.Popen[bytes] | None = None

    def heard(self, line: Line) -> None:
        if self._process is None:
            if "run_id" not in line:
                return  # the run has not begun
            self._process = self._start(line["run_id"])
        self._write(line)

    def close(self) -> None:
        if self._process is not None:
            self._write({"event": CLOSE})
            self._stdin.close()
            if code := self._process.wait(ANSWER_S):
                raise RuntimeError(f"its process ended with code {code}")

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin

    def _write(self, line: Line) -> None:
        self._stdin.write(json.dumps(line).encode() + b"\n")
        self._stdin.flush()

    def _start(self, run_id: str) -> subprocess.Popen[bytes]:
        folder = self._recipe.run_folder.resolve() / "wandb"
        folder.mkdir(exist_ok=True)
        path = folder / "settings.json"
        path.write_text(json.dumps(settings(self._recipe, run_id)))
        modules = [str(Path(restomod.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", PROCESS, str(path)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, modules))},
        )


def settings(recipe: Recipe, run_id: str) -> dict[str, Any]:
    """Return what the process is told of the run."""
    folder = recipe.run_folder.resolve()
    where = checkpoint_folder(folder, 0).parent.as_uri()
    if recipe.store:
        store = recipe.store if "://" in recipe.store else Path(recipe.store).resolve().as_uri()
        where = f"{store}/{recipe.run_name}/{checkpoint_folder(folder, 0).parent.name}"
    return {
        "id": run_id,
        "name": recipe.run_name,
        "project": recipe.logging.wandb.project,
        "mode": wandb_mode(recipe.logging.wandb),
        "folder": str(folder),
        "config": masked(dataclasses.asdict(recipe)),
        "checkpoints": masked(where),
        "alerts": recipe.logging.alerts.events,
        "argv": masked(sys.argv),
        "pid": os.getpid(),
    }


def masked(value: Any) -> Any:
    """Return a value without the user names and passwords that addresses in it may have."""
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item) for item in value]
    return re.sub(r"://[^/@\s]+@", "://***@", value) if isinstance(value, str) else value
