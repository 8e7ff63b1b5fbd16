"""What runs a sweep's trials: here, processes on this machine; `slurm.py` has Slurm's jobs.

In: a command line and a log file. Out: a `Job` that can be asked whether it has ended and told to
stop. The log is locked as long as its process lives: a sweep that was killed and goes on waits for
what it had started.
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
from pathlib import Path
from typing import Protocol

from restomod.errors import UserError

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


class Job(Protocol):
    """A trial that runs."""

    handle: str
    """By which another process finds the job again; empty if it cannot."""

    def code(self) -> int | None:
        """Return the exit code, or None as long as the job goes on."""

    def stop(self) -> None:
        """Ask the run to save and end."""


class Jobs(Protocol):
    """Where trials run."""

    stops: bool
    """Whether trials end with the sweep's process."""

    def start(self, name: str, command: Sequence[str], log: Path, handle: str) -> Job | None:
        """Start a trial, or find the one of this handle; None if that is not possible yet."""


class LocalJob:
    """A process."""

    handle = ""

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

    stops = True

    def __init__(self, jobs: int, environment: dict[str, str]) -> None:
        """`environment` is added to that of this process."""
        self._free = list(range(jobs))
        self._jobs = jobs
        self._environment = environment

    def start(self, name: str, command: Sequence[str], log: Path, handle: str) -> Job | None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            place = self._free[0]
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self._environment, **share(place, self._jobs)},
                    start_new_session=True,  # a terminal's Ctrl-C is ours to pass on
                    preexec_fn=_end_with_parent,
                )
            except OSError as error:
                raise UserError(f"command: {command[0]} cannot be started: {error}") from error
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
