"""Files and folders that appear whole or not at all, whoever writes them and however often."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ESCAPED = "backslashreplace"
"""How what UTF-8 cannot spell is written: a lone surrogate in a name of a file or of a field, which
becomes an escape sequence of JSON's."""


@contextmanager
def replacing(path: Path, partials: Path | None = None) -> Iterator[Path]:
    """Give a new name for a file or folder, in `partials` or beside `path`, and rename it to `path`
    if the block ends well; what is there is replaced. Two workers may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = partials or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{path.name}.{uuid.uuid4().hex}"
    try:
        yield partial
        if partial.is_dir() and path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    with replacing(path) as partial:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8", errors=ESCAPED)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
