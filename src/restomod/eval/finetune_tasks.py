"""Fine-tuning tasks of a suite, by `restomod finetune`'s own grid.

In: a task, models by name, where to write. Out: `TaskScores`, one score a seed, and the tuned
models that later tasks start from. `run.py` calls this. A suite that is stopped goes on with the
same command, for every point of a grid is a folder of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from restomod.errors import UserError
from restomod.eval.results import TaskScores
from restomod.eval.suite import FinetuneTask, Suite
from restomod.finetune.grid import check_data, check_task, run_grid
from restomod.interrupts import SAVES, Interrupts


def check_finetune(suite: Suite) -> None:
    """Raise UserError if any fine-tuning of the suite cannot work, before anything is computed."""
    for name, task in suite.tasks.items():
        if task.finetune:
            check_task(name, task.finetune.settings, task.finetune.grid)
    for name, task in suite.tasks.items():
        if task.finetune:
            check_data(name, task.finetune.settings, Path(suite.data_dir))


class FinetuneTasks:
    """The fine-tunings of one evaluation; it remembers which models they left."""

    def __init__(self, suite: Suite, models: Mapping[str, Path], out: Path) -> None:
        self._suite = suite
        self._models = models
        self._out = out
        self._tuned: dict[tuple[str, str], Path] = {}

    def run(self, name: str, task: FinetuneTask) -> TaskScores:
        """Tune every model on one task, or go on with it. Raises Stopped when asked to stop."""
        seeds = range(17, 17 + self._suite.seeds)
        chosen: dict[str, Any] = {}
        about = {"grid": task.grid, "seeds": [*seeds], "chosen": chosen}
        result = TaskScores(name, "finetune", about)
        for model, path in self._models.items():
            if task.starts_from and (task.starts_from, model) not in self._tuned:
                raise UserError(f"tasks.{name}: {task.starts_from} has to stand before it")
            start = self._tuned.get((task.starts_from, model), path)
            folder = self._out / "finetune" / name / re.sub(r"[^\w.-]+", "-", model)
            with Interrupts(SAVES).listening() as interrupts:
                found = run_grid(
                    name,
                    task.settings,
                    task.grid,
                    start,
                    folder,
                    seeds,
                    interrupts,
                    Path(self._suite.data_dir),
                )
            self._tuned[name, model] = found.model
            result.metric = found.scores[0].metric
            chosen[model] = {**found.point, "starts_from": task.starts_from or str(path)}
            result.scores[model] = {
                metric: np.array([[score.scores[metric]] for score in found.scores])
                for metric in found.scores[0].scores
            }
        return result
