"""What all pages share: the style and the script of report.html, and that none is seen half
written."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path

REPORT = Path(__file__).with_name("report.html")


def style() -> str:
    """Return report.html's style, so that all pages look the same."""
    return _between("style")


def script() -> tuple[str, str]:
    """Return report.html's script, and the source by which a page's policy allows it."""
    text = _between("script")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return text, f"sha256-{digest}"


def _between(tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", REPORT.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"report.html has lost its {tag}"
    return found[1]


def write_page(path: Path, page: str) -> None:
    """Write a page: a reader, or a second writer, never sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8", errors="replace")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
