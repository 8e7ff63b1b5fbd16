"""Sections of documentation: a heading and what stands below it.

In: Markdown or reStructuredText. Out: (heading, body). `build.py` calls this; it drops headings
that stand more than once, such as Installation: no body is the only right one for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MIN_BODY_CHARACTERS = 200
MAX_BODY_CHARACTERS = 2_000
HASHES = re.compile(r"#{1,6}\s+(.+?)\s*#*$")
UNDERLINE = re.compile(r"([=\-~^\"'`*+#.:_])\1{2,}\s*$")
FENCE = re.compile(r"\s*(```|~~~)")
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
WORD = re.compile(r"[A-Za-z]{3,}")


def sections(text: str) -> list[tuple[str, str]]:
    """Return the sections with a heading of two words or more and a body of some length."""
    found = []
    for heading, lines in _split(text.replace("\r\n", "\n").split("\n")):
        heading = plain(heading)
        same = heading.casefold()
        body = "\n".join(line for line in lines if plain(line).casefold() != same).strip()
        if len(WORD.findall(heading)) >= 2 and len(body) >= MIN_BODY_CHARACTERS:
            found.append((heading, body[:MAX_BODY_CHARACTERS]))
    return found


def plain(heading: str) -> str:
    """Return a heading without markup."""
    heading = LINK.sub(r"\1", LINK.sub(r"\1", heading))  # twice: badges are pictures in links
    return " ".join(re.sub(r"<[^>]*>|[`*_#|]", " ", heading).split())


def _split(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield every heading with its lines up to the next one; lines before the first are dropped."""
    heading: str | None = None
    body: list[str] = []
    fenced = False
    for n, line in enumerate(lines):
        if FENCE.match(line):
            fenced = not fenced
        title = None if fenced else _heading(lines, n)
        if title is not None:
            if heading is not None:
                yield heading, body
            heading, body = title, []
        elif not (UNDERLINE.match(line) and not fenced):
            body.append(line)
    if heading is not None:
        yield heading, body


def _heading(lines: list[str], n: int) -> str | None:
    if match := HASHES.match(lines[n]):
        return match[1]
    line = lines[n].rstrip()
    below = lines[n + 1] if n + 1 < len(lines) else ""
    is_title = bool(line) and not line[0].isspace() and not UNDERLINE.match(line)
    if is_title and UNDERLINE.match(below) and len(below.rstrip()) >= 0.8 * len(line):
        return line
    return None
