"""The values of one metric in a run's metrics.jsonl, as they come.

In: a run folder that another process writes. Out: all values so far, by W&B's name for the metric.
A resume takes the file back: then it is read from its beginning.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from restomod.tools.record.following import Follower
from restomod.tools.record.metrics_log import number


class Readings:
    """Follows one run."""

    def __init__(self, run_folder: Path, metric: str) -> None:
        self._follower = Follower(run_folder / "metrics.jsonl")
        self._event, *self._keys = metric.split("/")
        self.values: list[float] = []
        """The metric, each time that it was logged; NaN where it was no finite number."""
        self.step = 0
        """The run's last step."""
        self.time_s = 0.0
        """Its wall time, over all resumes."""

    def read(self) -> None:
        """Take in what was written since the last call."""
        more = True
        while more:
            lines, anew, more = self._follower.read()
            if anew:
                self.values, self.step, self.time_s = [], 0, 0.0
            for line in lines:
                self._add(line)

    def _add(self, line: dict[str, Any]) -> None:
        self.step = max(self.step, int(number(line.get("step")) or 0))
        self.time_s = max(self.time_s, number(line.get("time_s")) or 0.0)
        if line["event"] != self._event:
            return
        value: Any = line if self._event == "train" else line.get("domains")
        for key in self._keys:
            if not isinstance(value, dict) or key not in value:
                return
            value = value[key]
        found = number(value)
        self.values.append(math.nan if found is None else found)
