"""A thread for each listener, so that training never waits for a disk or a server that it does not
need.

`watch.py` puts each listener into one.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Any, Protocol

log = logging.getLogger(__name__)

Line = dict[str, Any]
MOST_WAITING = 50_000
"""Lines that wait for a listener; those that come when there are more are lost to it."""


class Listener(Protocol):
    """Shows the events of a run somewhere."""

    name: str
    """As people know it."""

    def heard(self, line: Line) -> None:
        """Take one line of metrics.jsonl, with `tokens` wherever there is a `step`."""

    def close(self) -> None:
        """Give back what is held; no line comes after."""


class Background:
    """Hands lines to a listener, in a thread. One that fails is told of and hears no more."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._lines: queue.Queue[Line | None] = queue.Queue(MOST_WAITING)
        self._lost = 0
        self._thread = threading.Thread(
            target=self._run, daemon=True, name=f"listener {listener.name}"
        )
        self._thread.start()

    def hear(self, line: Line) -> None:
        """Return at once."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def close(self, deadline: float) -> None:
        """Wait until the listener has heard everything and is closed, or until `deadline`
        (monotonic seconds)."""
        try:
            self._lines.put(None, timeout=max(deadline - time.monotonic(), 0.001))
            self._thread.join(max(deadline - time.monotonic(), 0.001))
        except queue.Full:
            self._lost += 1
        if self._thread.is_alive():
            log.warning("%s is not done in time; the run does not wait for it", self._listener.name)
        if self._lost:
            log.warning("%s was too slow for %d events", self._listener.name, self._lost)

    def _run(self) -> None:
        fine = True
        while (line := self._lines.get()) is not None:
            if fine:
                fine = self._guarded(lambda line=line: self._listener.heard(line))
        self._guarded(self._listener.close)

    def _guarded(self, action: Any) -> bool:
        """Return whether the action went well: what shows a run must not end it."""
        try:
            action()
        except Exception as error:
            log.warning(
                "%s fails, the run goes on without it: %s: %s",
                self._listener.name,
                type(error).__name__,
                error,
            )
            return False
        return True
