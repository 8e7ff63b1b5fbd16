"""Shards made ready in the background before they are needed.

Threads, because downloading, hashing and unpacking release the interpreter's lock; daemons, so that
a process which ends does not wait for a download. What fails here fails again, loudly, when the
shard is needed. `data/lanes.py` asks, `data/shards.py` does the work.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

THREADS = 2


class Prefetcher:
    """Runs jobs in the order in which they are asked for, two at a time."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._started = False

    def ask(self, job: Callable[[], object]) -> None:
        """Do `job` soon."""
        if not self._started:  # not in __init__: threads do not survive a fork
            self._started = True
            for _ in range(THREADS):
                threading.Thread(target=self._work, daemon=True, name="shards").start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except Exception as error:
                log.debug("prefetching: %s", error)
