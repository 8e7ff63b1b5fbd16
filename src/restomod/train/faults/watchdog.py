"""Ends a run that hangs: when nothing has been finished for a configured time, every rank writes
where it stands, and the job ends with the requeue code. Called by `builder.py`."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from composer import Callback, Logger, State

from restomod.train.agreement import leads_node
from restomod.train.faults.stopping import REQUEUE_CODE, leave_requeue

log = logging.getLogger(__name__)

GRACE_S = 5.0
"""Between a rank's stack and its end: the others, whose clocks differ a little, write theirs."""


class Watchdog(Callback):
    """Expects `beat` at least every `timeout_s` seconds; steps beat by themselves."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        timeout_s: float,
        tell: Callable[[int, str], None] = lambda step, reason: None,
    ) -> None:
        """`tell` is told of a hang, the last finished step first; it returns at once, and has
        `GRACE_S` to act."""
        self._folder = folder
        self._rank = rank
        self._timeout_s = timeout_s
        self._tell = tell
        self._step = 0
        self._beat = time.monotonic()
        self._ended = threading.Event()
        self._hangs = threading.Event()

    def beat(self) -> None:
        """Say that something was finished."""
        self._beat = time.monotonic()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the end of the block. If that fails in a hang, since other ranks have ended,
        this one ends as they do."""
        self.beat()
        thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        thread.start()
        try:
            yield
        except Exception:
            if self._hangs.is_set():
                thread.join()
            raise
        finally:
            self._ended.set()

    def batch_start(self, state: State, logger: Logger) -> None:
        self._step = state.timestamp.batch.value

    def batch_end(self, state: State, logger: Logger) -> None:
        self._step = state.timestamp.batch.value
        self.beat()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._timeout_s / 10)):
            if time.monotonic() - self._beat > self._timeout_s:
                self._end()

    def _end(self) -> None:
        self._hangs.set()
        self._tell(self._step, f"nothing was finished for {self._timeout_s:g} s")
        stacks = self._folder / "hangs" / f"step-{self._step:08d}-rank-{self._rank:05d}.txt"
        log.error(
            "rank %d on %s: nothing was finished for %g s after step %d; its stack is in %s. "
            "The job ends with the requeue code; the same command continues the run",
            self._rank,
            socket.gethostname(),
            self._timeout_s,
            self._step,
            stacks,
        )
        try:
            self._write_stacks(stacks)
            if leads_node():
                leave_requeue(self._folder, "hang", self._step)
        except OSError as error:  # the disk may be what the run waits for
            log.error("%s cannot be written: %s", self._folder, error)
        time.sleep(GRACE_S)
        if not self._ended.is_set():
            os._exit(REQUEUE_CODE)  # under torchrun, too: a failure makes it restart

    def _write_stacks(self, path: Path) -> None:
        """Write where this rank's threads stand."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            file.write(
                f"rank {self._rank} on {socket.gethostname()}, process {os.getpid()}, after step "
                f"{self._step}, {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n"
            )
            main = sys._current_frames().get(threading.main_thread().ident or 0)
            file.write("".join(["main thread:\n", *traceback.format_stack(main)]))
            file.flush()  # faulthandler writes past it, and 100 threads at most
            faulthandler.dump_traceback(file, all_threads=True)
