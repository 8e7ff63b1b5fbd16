"""metrics.jsonl: one JSON object a line for everything that happens to a run. Fields:
docs/metrics.md. What else shows a run (`watching/`) listens to the same lines."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from composer.utils import dist

from restomod.train.clock import RunClock

Line = dict[str, Any]


class MetricsLog:
    """Appends to a run's metrics.jsonl on rank 0, and hands each line to `listen`; elsewhere does
    nothing.

    Lines for which the disk has no room wait for the next write: checkpoints, whose failure stops
    all ranks, will find it full too, and give back what they took.
    """

    def __init__(
        self, path: Path, clock: RunClock, listen: Callable[[Line], None] = lambda line: None
    ) -> None:
        self._path = path
        self._clock = clock
        self._listen = listen
        self._waiting = ""

    def rewind(self, step: int) -> None:
        """Drop lines of steps after `step`, and a last line cut short: the run repeats those
        steps. Rank 0 calls it."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line + "\n")
            except ValueError:
                continue
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(self._path)

    def write(self, event: str, **fields: Any) -> None:
        """Append one line; numbers that JSON has no word for become null."""
        if dist.get_global_rank() != 0:
            return
        line = _finite({"event": event, "time_s": round(self._clock.now_s(), 3), **fields})
        self._listen(line)
        self._waiting += json.dumps(line) + "\n"
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a") as file:
                file.write(self._waiting)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.truncate(self._path, size)  # half a line may be there
        else:
            self._waiting = ""


def _finite(value: Any) -> Any:
    """Return a tree of values, None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
