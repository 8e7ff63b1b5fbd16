"""The skip ledger of rows: what is drawn, but not learned from.

An entry covers the rows of whole steps. Such a step is computed and changes no weight. Entries are
kept in every checkpoint, and in the run folder's ledger.json, since a roll-back goes to a
checkpoint that is older than its entry. `builder.py` makes it, `health.py` asks it; imports no
torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from restomod.train.checkpoints.manifest import write_durably

FILE = "ledger.json"


class Ledger:
    """Entries: {first_row, rows, step, reason, ...}, in the order in which they were made."""

    def __init__(
        self,
        folder: Path,
        saved: Iterable[dict[str, Any]] = (),
        written: Iterable[dict[str, Any]] = (),
    ) -> None:
        """Take the entries that a checkpoint has `saved`, and those that are `written` in rank 0's
        run folder beyond them: every rank must have the same."""
        self._path = folder / FILE
        self.entries: list[dict[str, Any]] = list(saved)
        self.entries += [entry for entry in written if entry not in self.entries]

    def covers(self, first_row: int, rows: int) -> bool:
        """Return whether one of the rows is on the ledger."""
        return any(
            entry["first_row"] < first_row + rows and first_row < entry["first_row"] + entry["rows"]
            for entry in self.entries
        )

    def add(self, entry: dict[str, Any], write: bool) -> None:
        """Append an entry, and, on the rank that writes, keep it in the run folder."""
        self.entries.append(entry)
        if write:
            write_durably(self._path, json.dumps(self.entries, indent=1))


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """Return the entries that a run folder keeps."""
    path = folder / FILE
    found: list[dict[str, Any]] = json.loads(path.read_bytes()) if path.is_file() else []
    return found
