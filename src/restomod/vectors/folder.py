"""The folder, on disk or in an object store, that vectors are written to: parts that are whole or
not there, and what they were made from.

In: files put together in a temporary place. Out: files under their final names. `bulk.py` is the
caller.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.prepare.atomic import replacing
from restomod.prepare.files import is_remote

BEGUN = "embed.json"
COMPLETE = "complete.json"


def part_name(number: int) -> str:
    """Return the name of a part."""
    return f"part-{number:06d}.parquet"


class Output:
    """A folder of parts."""

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")
        self._system: Any = None
        if is_remote(self.path):
            import fsspec

            try:
                self._system, self._inside = fsspec.core.url_to_fs(self.path)
            except (ImportError, ValueError) as error:
                raise UserError(f"{path}: cannot be opened: {error}") from None

    def names(self) -> set[str]:
        """Return the names of all files and folders in it, hidden ones left out."""
        if self._system:
            self._system.invalidate_cache()
            there = self._system.exists(self._inside)
            found = self._system.ls(self._inside, detail=False) if there else []
        elif Path(self.path).is_file():
            raise UserError(f"{self.path}: is a file; choose another --out")
        else:
            found = [str(p) for p in Path(self.path).iterdir()] if Path(self.path).exists() else []
        names = {name.rstrip("/").rpartition("/")[2] for name in found}
        return {name for name in names if not name.startswith(".")}

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Have `write` make a file, and put it in place when it is whole."""
        try:
            if not self._system:
                with replacing(Path(self.path) / name) as partial:
                    write(partial)
                return
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder) / name)
                self._system.put_file(str(Path(folder) / name), f"{self._inside}/{name}")
        except OSError as error:
            raise UserError(
                f"{self.path}/{name}: cannot be written: {error}; the parts before it stay, and "
                "the same command goes on"
            ) from error

    def write_json(self, name: str, content: Any) -> None:
        self.write(name, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))

    def read_json(self, name: str) -> Any:
        """Return a file's content; raises UserError if it is no JSON."""
        path = f"{self._inside}/{name}" if self._system else f"{self.path}/{name}"
        try:
            data = self._system.cat_file(path) if self._system else Path(path).read_bytes()
            return json.loads(data)
        except ValueError:
            raise UserError(f"{self.path}/{name}: is no JSON; choose another --out") from None
