"""Slurm jobs that run a sweep's trials: an array where all are known beforehand, or a job for each.

In: tasks whose files are on disks that the nodes share. Out: a `Job` for each. A job leaves the
exit code of its command beside its log, unless it is to start again; one that is gone without a
code is lost, and its trial goes on in another. Numbers of jobs are kept in the sweep's folder, so
that another process finds them.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from restomod.errors import UserError
from restomod.launch.profile import Profile
from restomod.sweep.jobs import Job, Setting, Task, python_first
from restomod.sweep.script import ARRAY, Cluster
from restomod.train.faults.stopping import REQUEUE_CODE

log = logging.getLogger(__name__)

NUMBERS = "slurm.jsonl"
"""In the sweep's folder: a line for each submission, {trial: job}."""
ASK_S = 10.0
"""Between two questions to Slurm."""
LOST_S = 30.0
"""After which a job that Slurm does not know, or calls ended, has left no code: disks that nodes
share may show a file late."""
ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}


class Queue:
    """What Slurm says of jobs: asked seldom, and about all of them at once."""

    def __init__(self) -> None:
        self.asked = -float("inf")
        """When it was last asked."""
        self._numbers: set[str] = set()
        self._alive: set[str] | None = None
        self._answered: set[str] = set()

    def watch(self, handles: Sequence[str]) -> None:
        """Ask about these jobs, too, from the next time on."""
        self._numbers |= {handle.partition("_")[0] for handle in handles}

    def alive(self, handle: str) -> bool | None:
        """Return whether a job waited or ran when Slurm was last asked; None if it has not said."""
        if time.monotonic() - self.asked > ASK_S:
            self._ask()
        if self._alive is None or handle.partition("_")[0] not in self._answered:
            return None
        return handle in self._alive

    def _ask(self) -> None:
        self.asked = time.monotonic()
        self._alive, self._answered = None, set(self._numbers)
        question = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T"]
        question.append(f"--jobs={','.join(sorted(self._numbers))}")
        asked = subprocess.run(question, capture_output=True, text=True)
        if asked.returncode and "Invalid job id" not in asked.stderr:
            return
        told = (line.split() for line in asked.stdout.splitlines())
        self._alive = {handle for handle, state in told if state not in ENDED}


class SlurmJob:
    """A job, or a task of an array, from its submission on."""

    def __init__(self, handle: str, code: Path, queue: Queue) -> None:
        self._handle = handle
        self._code = code
        self._queue = queue
        self._seen = time.monotonic()
        self._saved_at: float | None = None
        """When it was seen that it had saved."""

    def code(self) -> int | None:
        over = self._queue.alive(self._handle) is False
        if not over:
            self._seen = time.monotonic()
        if self._code.exists():
            code = int(self._code.read_text())
            self._saved_at = self._saved_at or time.monotonic()
            # Slurm may have requeued one that saved: its own doing, and the trial goes on there.
            if code == REQUEUE_CODE and not (over and self._queue.asked > self._saved_at):
                return None
            self._code.unlink()
            return code
        self._saved_at = None
        return REQUEUE_CODE if time.monotonic() - self._seen > LOST_S else None

    def stop(self) -> None:
        # To the script, which passes it on; Slurm would kill what is left some time after its own.
        subprocess.run(["scancel", "--batch", "--signal=TERM", self._handle], capture_output=True)


class SlurmJobs:
    """Submits trials with sbatch, and finds those that were."""

    stops = False

    def __init__(
        self, setting: Setting, profile: Profile | None, options: Sequence[str], at_a_time: int
    ) -> None:
        """`options` are sbatch's, for every trial; they win over the profile. Raises UserError."""
        self._cluster = Cluster(setting, profile)
        self._cluster.check()
        self._folder = setting.folder
        self._options = list(options)
        self._at_a_time = at_a_time
        self.together = ARRAY if setting.foreseen else 0
        self._queue = Queue()
        self._arrays: set[str] = set()
        numbers = self._folder / NUMBERS
        lines = numbers.read_text().splitlines() if numbers.exists() else []
        self._handles: dict[str, str] = {}
        for line in lines:
            self._handles |= json.loads(line)
        self._queue.watch(list(self._handles.values()))

    def start(self, tasks: Sequence[Task]) -> list[Job | None]:
        jobs = [self._find(task) for task in tasks]
        fresh = [task for task, job in zip(tasks, jobs, strict=True) if job is None]
        if not self.together:
            for task in fresh:
                self._submit([task])
        elif fresh and len(fresh) == len(tasks):  # else two arrays would run side by side
            fresh = [task for task in fresh if task.number // ARRAY == fresh[0].number // ARRAY]
            self._submit(fresh)
        else:
            self._bound()
            return jobs
        return [
            self._job(task) if task in fresh else job for task, job in zip(tasks, jobs, strict=True)
        ]

    def withdraw(self) -> None:
        for number in self._arrays:
            subprocess.run(["scancel", "--state=PENDING", number], capture_output=True)

    def _find(self, task: Task) -> Job | None:
        """Return the job of a trial that another process has submitted."""
        handle = self._handles.get(task.name)
        if handle and (task.code.exists() or self._queue.alive(handle) is not False):
            self._note_array(handle)
            return self._job(task)
        return None

    def _job(self, task: Task) -> Job:
        return SlurmJob(self._handles[task.name], task.code, self._queue)

    def _submit(self, tasks: Sequence[Task]) -> None:
        script = self._folder / "launch" / f"{tasks[0].name}.sh"
        for folder in (script.parent, tasks[0].log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        script.write_text(self._cluster.script(tasks, self._at_a_time))
        for task in tasks:
            task.code.unlink(missing_ok=True)
        command = ["sbatch", "--parsable", *self._options, str(script)]
        environment = {**os.environ, "PATH": python_first()}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UserError("sbatch is not here: --on slurm submits jobs with it") from error
        if done.returncode:
            raise UserError(f"{shlex.join(command)}: {(done.stderr or done.stdout).strip()}")
        number = done.stdout.strip().partition(";")[0]
        handles = {task.name: number for task in tasks}
        if len(tasks) > 1:
            handles = {task.name: f"{number}_{task.number % ARRAY}" for task in tasks}
            log.info(
                "array %s: %d trials, %d at a time; it goes on without this process, and ends with "
                "`scancel %s`", number, len(tasks), self._at_a_time, number,
            )  # fmt: skip
        with (self._folder / NUMBERS).open("a") as file:
            file.write(json.dumps(handles) + "\n")
        self._handles |= handles
        self._queue.watch([number])
        self._note_array(handles[tasks[0].name])

    def _note_array(self, handle: str) -> None:
        number, _, task = handle.partition("_")
        if task:
            self._arrays.add(number)

    def _bound(self) -> None:
        """Have arrays that were found run as many tasks at a time as is asked for now."""
        for number in self._arrays:
            change = f"ArrayTaskThrottle={self._at_a_time}"
            subprocess.run(["scontrol", "update", f"JobId={number}", change], capture_output=True)
