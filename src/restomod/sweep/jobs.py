"""What runs a sweep's trials: here, processes on this machine; `slurm.py` has Slurm's jobs.

In: tasks, each a command line and a log file. Out: for each a `Job` that can be asked whether it
has ended and told to stop. The log is locked as long as its process lives: a sweep that was killed
and goes on waits for what it had started.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from restomod.errors import UserError

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Setting:
    """What all trials of a sweep share."""

    name: str
    folder: Path
    before_program: list[str]
    """Words of the command in front of the program."""
    grace: str
    """Time between a signal and the end, as the recipe says."""
    environment: dict[str, str]
    """Further variables."""
    foreseen: bool
    """Whether no trial depends on how others went: all may be handed over at once."""


@dataclass(frozen=True)
class Task:
    """A trial, as what runs it sees it."""

    number: int
    name: str
    command: list[str]
    log: Path
    run_folder: Path

    @property
    def code(self) -> Path:
        """File in which a job leaves its exit code."""
        return self.log.with_suffix(".code")


class Job(Protocol):
    """A trial that runs, or waits for its turn."""

    def code(self) -> int | None:
        """Return the exit code, once, or None as long as the job goes on."""

    def stop(self) -> None:
        """Ask the run to save and end."""


class Jobs(Protocol):
    """Where trials run."""

    stops: bool
    """Whether trials end with the sweep's process."""
    together: int
    """Trials that are handed over at once, when none runs, to be run some at a time; 0: each when
    its turn has come."""

    def start(self, tasks: Sequence[Task]) -> list[Job | None]:
        """Start trials, or find those that run; None for one that has to wait."""

    def withdraw(self) -> None:
        """Take back what has not begun to run."""


class LocalJob:
    """A process."""

    def __init__(self, process: subprocess.Popen[bytes], leave: Callable[[], None]) -> None:
        self._process = process
        self._leave = leave

    def code(self) -> int | None:
        ended = self._process.returncode is not None
        code = self._process.poll()
        if code is not None and not ended:
            self._leave()
        return code

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)


class LocalJobs:
    """Runs up to `jobs` processes, each with its share of cores and GPUs."""

    stops, together = True, 0

    def __init__(self, jobs: int, environment: dict[str, str]) -> None:
        """`environment` is added to that of this process."""
        self._free = list(range(jobs))
        self._jobs = jobs
        self._environment = environment

    def start(self, tasks: Sequence[Task]) -> list[Job | None]:
        return [self._start(task) for task in tasks]

    def withdraw(self) -> None:
        """Whatever was started runs."""

    def _start(self, task: Task) -> Job | None:
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # its last process has not ended
                return None
            place = self._free[0]
            try:
                process = subprocess.Popen(
                    task.command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self._environment, **share(place, self._jobs)},
                    start_new_session=True,  # a terminal's Ctrl-C is ours to pass on
                    preexec_fn=_end_with_parent,
                )
            except OSError as error:
                raise UserError(f"command: {task.command[0]} cannot be started: {error}") from error
            self._free.remove(place)
        return LocalJob(process, lambda: self._free.append(place))


def share(place: int, jobs: int) -> dict[str, str]:
    """Return the variables that give a process its part of the machine, unless they are set."""
    cores = len(os.sched_getaffinity(0))
    variables = {"PATH": python_first()}
    if "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(max(1, cores // jobs))
    devices = _devices()
    if len(devices) >= jobs:
        each = len(devices) // jobs
        mine = devices[place * each : (place + 1) * each]
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    elif devices:
        variables["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    return variables


def python_first() -> str:
    """Return a PATH on which a command's `python` is the one that runs us."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def _devices() -> list[str]:
    """Return the GPUs that this process may use, without loading anything that knows them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip()]
    numbers = [re.fullmatch(r"nvidia(\d+)", file.name) for file in Path("/dev").glob("nvidia*")]
    return sorted((number[1] for number in numbers if number), key=int)


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when the sweep's process is killed."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
