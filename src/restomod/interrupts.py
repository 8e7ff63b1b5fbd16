"""Requests to stop that are noted, for what stops between two steps: sweeps and fine-tuning."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

SAVES = "saves after this step and stops; Ctrl-C once more ends it at once\n"


class Stopped(BaseException):
    """Ends what was asked to stop and has saved; no Exception, so that nothing on the way takes it
    for a failure."""

    def __init__(self, reason: str, step: int, steps: int) -> None:
        super().__init__(f"{reason}: stopped and saved after step {step} of {steps}")
        self.reason = reason


class Interrupts:
    """Notes SIGTERM and Ctrl-C; a second Ctrl-C ends the process."""

    def __init__(self, told: str = "") -> None:
        """`told` is written to standard error when the first request comes."""
        self.asked = ""
        self._told = told

    @contextlib.contextmanager
    def listening(self) -> Iterator[Interrupts]:
        before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            os.write(2, self._told.encode())  # not by the logger, whose lock may be held
        self.asked = signal.Signals(number).name
