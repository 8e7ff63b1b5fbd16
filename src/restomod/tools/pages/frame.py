"""The frame that all pages share: a run's report, several runs', a sweep's, a plan's, a data card.

In: a page's title, sections and notices, as HTML. Out: one file that opens offline, years later:
style and script (page.css, page.js) stand in it, its policy allows nothing else, and a reader, or a
second writer, never sees half of it.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from restomod.errors import UserError

HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name}: {kind}</title>
<style>{style}</style>
</head>
<body>
<header>
  <p class="eyebrow">restomod {kind}</p>
  <h1>{name}</h1>
  {header}
</header>
{nav}
<main>
{sections}
</main>
{footer}
{script}
</body>
</html>
"""  # noqa: E501
READ_BY_SCRIPT = "data-unit="
"""Marks charts with a cursor; a page without them has no script, and allows none."""
AXIS = """<fieldset aria-label="Horizontal axis">
    <label><input type="radio" name="x" id="x-tokens" checked>tokens</label>
    <label><input type="radio" name="x" id="x-time">wall time</label>
  </fieldset>"""


@dataclass(frozen=True)
class Part:
    """A section of a page; `body` is HTML, and where it is empty the section is left out."""

    slug: str
    title: str
    body: str
    link: str = ""
    """The title in few words, where it is long."""


@dataclass(frozen=True)
class Page:
    """What a page holds; strings are text unless they are said to be HTML."""

    kind: str
    """What the page is: run report, sweep, plan, data card."""
    name: str
    summary: Sequence[str]
    """Paragraphs below the name, as HTML."""
    parts: Sequence[Part]
    notices: Sequence[str] = ()
    """What whoever reads the page must know."""
    status: Sequence[tuple[str, str, str]] = ()
    """Numbers: label, value as HTML, note as HTML."""
    progress: str = ""
    """A bar, as HTML."""
    footer: str = ""
    axis: bool = False
    """Whether its charts can be switched from tokens to wall time."""
    style: str = ""
    """Rules of this page alone."""


def render(page: Page) -> str:
    """Return the page's file."""
    parts = [part for part in page.parts if part.body]
    script, allowed = "", "'none'"
    if any(READ_BY_SCRIPT in part.body for part in parts):
        code = _file("page.js")
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        script, allowed = f"<script>{code}</script>", f"'sha256-{digest}'"
    footer = f"<footer>{escape(page.footer)}</footer>" if page.footer else ""
    return HTML.format(
        allowed=allowed,
        kind=escape(page.kind),
        name=escape(page.name),
        style=_file("page.css") + page.style,
        header="\n  ".join(_header(page)),
        nav=_nav(parts, page.axis),
        sections="\n".join(
            f'<section id="{part.slug}"><h2>{escape(part.title)}</h2>{part.body}</section>'
            for part in parts
        ),
        footer=footer,
        script=script,
    )


def write_page(path: Path, page: Page) -> Path:
    """Write a page and return its path; raises UserError where that cannot be done."""
    text = render(page)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            partial.write_text(text, encoding="utf-8", errors="replace")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _header(page: Page) -> list[str]:
    out = [f'<p class="summary">{paragraph}</p>' for paragraph in page.summary if paragraph]
    out.append(page.progress)
    if page.notices:
        notices = "".join(f"<li>{escape(notice)}</li>" for notice in page.notices)
        out.append(f'<ul class="notices">{notices}</ul>')
    if page.status:
        cells = "".join(
            f"<div><dt>{escape(label)}</dt><dd><b>{value}</b><small>{note}</small></dd></div>"
            for label, value, note in page.status
        )
        out.append(f'<dl class="status">{cells}</dl>')
    return [line for line in out if line]


def _nav(parts: Sequence[Part], axis: bool) -> str:
    links = "".join(
        f'<a href="#{part.slug}">{escape(part.link or part.title)}</a>' for part in parts
    )
    return f'<nav aria-label="Sections">\n  {links}\n  {AXIS if axis else ""}\n</nav>'
