"""From trials and a cluster's profile to the batch script that Slurm takes.

In: what all trials of a sweep share, some of its trials. Out: a script, filled in from a template
of launchers/ as `restomod launch` does it. `slurm.py` is the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.launch.profile import Profile
from restomod.launch.render import (
    SBATCH_EXPORT,
    check_slurm,
    container,
    environment,
    fill,
    slurm_time,
)
from restomod.launch.words import check_words
from restomod.sweep.jobs import Setting, Task
from restomod.train.faults.stopping import REQUEUE
from restomod.units import parse_duration

ARRAY = 1000
"""Tasks of an array: indexes that every Slurm takes whose MaxArraySize is the default."""


@dataclass(frozen=True)
class Cluster:
    """What all trials of a sweep share on Slurm."""

    setting: Setting
    profile: Profile | None
    """Facts of the cluster; None: trials have what the submitting shell has."""

    def check(self) -> None:
        """Raise UserError for a profile that does not suit Slurm, or the sweep's command."""
        if self.profile is None:
            return
        check_slurm(self.profile, self.setting.grace)
        if self.profile.slurm.container == "apptainer" and "srun" in self.setting.before_program:
            raise UserError(
                "slurm.container: apptainer, and the sweep's command starts srun: write `apptainer "
                "exec ...` into the command, behind srun's options"
            )

    @property
    def workdir(self) -> str:
        """The checkout as nodes see it."""
        return (self.profile and self.profile.workdir) or str(Path.cwd())

    def command(self, task: Task) -> list[str]:
        """Return a trial's command on a node."""
        if self.profile is None:
            return task.command
        head, tail = self.setting.before_program, task.command[len(self.setting.before_program) :]
        head = [self.profile.python if word == "python" else word for word in head]
        inside = container(self.profile)
        if inside and "srun" in head:
            at = head.index("srun") + 1
            return [*head[:at], *inside, *head[at:], *tail]
        if self.profile.slurm.container == "pyxis":
            inside = ["srun", "--ntasks=1", *inside]
        return [*inside, *head, *tail]

    def script(self, tasks: Sequence[Task], at_a_time: int) -> str:
        """Return the script of a job for one trial, or of an array for several, whose numbers are
        of one thousand."""
        profile, first = self.profile, tasks[0]
        log = str(Path(self.workdir) / first.log).replace("%", "%%")
        indexes = [task.number % ARRAY for task in tasks]
        together = len(tasks) > 1
        if together:  # a log's name ends in a trial's number, of three digits at least
            log = log.removesuffix(".log")[:-3] + "%3a.log"
        for task in tasks:
            check_words(task.command[len(self.setting.before_program) + 1 :])
        values: dict[str, Any] = {
            "name": self.setting.name if together else first.name,
            "array": f"{_ranges(indexes)}%{at_a_time}" if together else "",
            "profile": profile,
            "time_limit": slurm_time(parse_duration(profile.time_limit)) if profile else "",
            "max_requeues": (profile or Profile()).max_requeues,
            "export": ",".join(SBATCH_EXPORT),
            "output": log,
            "grace_s": math.ceil(parse_duration(self.setting.grace)),
            "workdir": self.workdir,
            "path": self._path(),
            "env": {**(environment(profile) if profile else {}), **self.setting.environment},
            "REQUEUE": REQUEUE,
            "in_steps": "srun" in self.command(first),
            "trials": [
                {
                    "index": index,
                    "code": str(Path(self.workdir) / task.code),
                    "run_folder": str(Path(self.workdir) / task.run_folder),
                    "command": self.command(task),
                }
                for index, task in zip(indexes, tasks, strict=True)
            ],
        }
        return fill("slurm-sweep.sh", values)

    def _path(self) -> str:
        """Return the folder of the profile's interpreter, where its torchrun is, too."""
        if not self.profile or container(self.profile) or "/" not in self.profile.python:
            return ""
        return str((Path(self.workdir) / self.profile.python).parent)


def _ranges(numbers: Sequence[int]) -> str:
    """Write numbers as an array's indexes: 0-3,7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
