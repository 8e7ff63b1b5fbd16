"""Ranks of `train.py` as children of a process that has imported everything once.

`Ranks` is what stands between a job and its launcher: it watches the ranks, may kill, signal and
freeze each of them, and ends those that are left when one has failed, as torchrun does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from restomod.train.faults.stopping import REQUEUE_CODE

GRACE_S = 30.0
"""Between SIGTERM and SIGKILL for ranks of which another has failed: torchrun's."""
POLL_S = 0.01


def fork_server() -> multiprocessing.context.ForkServerContext:
    """Return what starts processes that need not import torch anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["restomod.train.builder"])
    return context


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def rank_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Return the environment that a launcher gives to a rank on a single node."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "NODE_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }


def train_in_child(
    arguments: list[str], environment: dict[str, str], log: str, folder: Path | None = None
) -> None:
    """Be `train.py`, in this process."""
    os.environ.update(environment)
    if folder:
        os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # A loader's processes are forks of their rank, as they are of `python train.py`.
    multiprocessing.set_start_method("fork", force=True)
    from restomod.cli import train_main

    sys.exit(train_main(arguments))


class Ranks:
    """The ranks of one job, from their start until the last of them has ended."""

    def __init__(self, words: Iterable[object], world_size: int, log: Path) -> None:
        self._log = log
        self._left_until = 0.0
        self.first_code: int | None = None
        """With what the rank that ended first ended: what a launcher goes by."""
        self.overdue = False
        """Whether a rank had to be killed because it did not end when another had."""
        port = free_port()
        self._processes = [
            fork_server().Process(
                target=train_in_child,
                args=(
                    [str(word) for word in words],
                    rank_variables(rank, world_size, port) if world_size > 1 else {},
                    str(log),
                ),
            )
            for rank in range(world_size)
        ]
        for process in self._processes:
            process.start()

    @property
    def codes(self) -> list[int | None]:
        return [process.exitcode for process in self._processes]

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    def printed(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def ended(self) -> bool:
        """Return whether all ranks have ended; a rank that failed or stays behind is seen to."""
        codes = self.codes
        gone = [code for code in codes if code is not None]
        if len(gone) == len(codes):
            self.first_code = gone[0] if self.first_code is None else self.first_code
            return True
        if gone and self.first_code is None:
            self.first_code = gone[0]
            self._left_until = time.monotonic() + GRACE_S
            if self.first_code not in (0, REQUEUE_CODE):
                self.send(signal.SIGTERM)
        elif gone and time.monotonic() > self._left_until:
            self.overdue = True
            self.send(signal.SIGKILL)
        return False

    def wait(self, limit_s: float) -> int:
        """Return the first rank's code when all have ended; raises TimeoutError if that takes
        longer."""
        end = time.monotonic() + limit_s
        while not self.ended():
            if time.monotonic() > end:
                raise TimeoutError(f"the ranks go on after {limit_s:g} s: {self.codes}")
            time.sleep(POLL_S)
        assert self.first_code is not None
        return self.first_code

    def send(self, number: signal.Signals, ranks: Iterable[int] | None = None) -> None:
        """Send a signal to all ranks that are left, or to some."""
        for rank in range(len(self._processes)) if ranks is None else ranks:
            if self._processes[rank].exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pids[rank], number)

    def kill(self) -> None:
        """End all ranks at once, and return when they have."""
        self.send(signal.SIGKILL)
        for process in self._processes:
            process.join()
        self.ended()
