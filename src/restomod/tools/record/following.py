"""A run's metrics.jsonl while it grows: each line is read once.

In: the file, which training appends to and, when the run goes back to a checkpoint, replaces. Out:
what is known of the run so far. `restomod top` calls it; imports no torch.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

from restomod.tools.record.downsampled import Downsampled
from restomod.tools.record.metrics_log import RunLog, number
from restomod.train.faults.stopping import read_requeue

Line = dict[str, Any]
PIECE = 1 << 22
"""Bytes that are read at a time."""
RECENT = 50
"""Lines of training that speeds and the time left are taken from."""


class Follower:
    """Returns the lines of a file that were not returned before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = -1
        self._offset = 0
        self._rest = b""

    def read(self) -> tuple[list[Line], bool, bool]:
        """Return lines, whether they are the first of a file that is new, and whether there are
        more already; a line that is not whole waits, one that is no JSON object is left out."""
        try:
            with self._path.open("rb") as file:
                return self._read(file)
        except FileNotFoundError:
            return [], False, False

    def _read(self, file: Any) -> tuple[list[Line], bool, bool]:
        stat = os.fstat(file.fileno())
        anew = stat.st_ino != self._inode or stat.st_size < self._offset
        if anew:
            self._inode, self._offset, self._rest = stat.st_ino, 0, b""
        file.seek(self._offset)
        data = file.read(PIECE)
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line for text in whole if (line := _parse(text))], anew, len(data) == PIECE


def _parse(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("event"), str) else None


class Followed:
    """What the lines of a run say, and how old the last one is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "metrics.jsonl"
        self._follower = Follower(self._path)
        self._clear()

    def _clear(self) -> None:
        self.log = RunLog()
        self.losses = Downsampled(256)
        self.last: dict[str, Line] = {}
        """The newest line of each event."""
        self.newest = ""
        """The event of the newest line."""
        self.recent: deque[Line] = deque(maxlen=RECENT)
        """The newest lines of training, of this process of the run."""
        self.checkpoints: deque[Line] = deque(maxlen=3)

    def update(self) -> bool:
        """Take in what is new, at most `PIECE`; return whether there is more."""
        lines, anew, more = self._follower.read()
        if anew:
            self._clear()
        for line in lines:
            self._add(line)
        return more

    def _add(self, line: Line) -> None:
        event = line["event"]
        self.log.add(line)
        self.last[event] = line
        self.newest = event
        if event in ("start", "resume"):
            self.recent.clear()
        elif event == "train":
            self.recent.append(line)
            loss = number(line.get("loss"))
            if loss is not None:
                self.losses.add(0.0, 0.0, {"loss": loss})
        elif event == "checkpoint":
            self.checkpoints.append(line)

    @property
    def beginning(self) -> Line:
        """The line with which the run's newest process began."""
        return self.last.get("resume") or self.last.get("start") or {}

    def age_s(self) -> float:
        """Return the seconds since the last line; 0 before the first."""
        try:
            return max(time.time() - self._path.stat().st_mtime, 0.0)
        except OSError:
            return 0.0

    def requeue(self) -> Line:
        """Return what the run folder says of a run that was stopped and wants to go on."""
        return read_requeue(self.folder) or {}

    def tokens_per_wall_s(self) -> float | None:
        """Return recent tokens per second of wall time, evaluations and checkpoints included."""
        if len(self.recent) < 2:
            return None
        first, last = self.recent[0], self.recent[-1]
        seconds = last["time_s"] - first["time_s"]
        return (last["tokens"] - first["tokens"]) / seconds if seconds > 0 else None
