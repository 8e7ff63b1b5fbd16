"""Wall time of a run, over all its resumes, and how much of it was not training.

`builder.py` makes it; evaluations and checkpoints pause it, metrics read it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class RunClock:
    """Counts seconds since the run began; `before_s` is what earlier processes have counted."""

    def __init__(self) -> None:
        self.before_s = 0.0
        self.paused_s = 0.0
        """Seconds spent in evaluation and checkpoints by this process."""
        self._started = time.perf_counter()

    def now_s(self) -> float:
        """Return the run's wall time in seconds."""
        return self.before_s + time.perf_counter() - self._started

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Count what happens inside as not training."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.paused_s += time.perf_counter() - started
