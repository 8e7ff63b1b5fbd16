"""Values and tables as all pages write them.

In: numbers, which may be absent, and rows of cells. Out: HTML. Whoever fills a page's sections
calls this.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

NONE = '<span class="none">&ndash;</span>'


def plain(value: float | None, spec: str = ",.0f") -> str:
    return NONE if value is None else format(value, spec)


def percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f}%"


def signed(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:+.{digits}f}".replace("-", "&minus;")


def bytes_text(value: float | None) -> str:
    if value is None:
        return NONE
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} bytes"


def times(count: int, what: str) -> str:
    """Write how often: no resume, 1 resume, 2 resumes."""
    return f"no {what}" if count == 0 else f"{count:,} {what}{'s' if count > 1 else ''}"


def bar(share: float) -> str:
    return f'<span class="bar"><i style="width:{100 * min(1.0, max(0.0, share)):.1f}%"></i></span>'


def passage(html: str) -> str:
    """Show a text as it stands, which scrolls by itself where it is long."""
    return f'<pre tabindex="0" role="region" aria-label="Text">{html}</pre>' if html else ""


def remarks(notes: Sequence[str]) -> str:
    """Write remarks below each other."""
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def key(style: str) -> str:
    """Draw the piece of a line by which a legend names its colour."""
    return f'<span class="key {style}"></span>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    label: str,
    style: str = "",
    ids: Sequence[str] = (),
) -> str:
    """Write a table that scrolls by itself on a narrow screen; `rows` are HTML, `head` is text,
    `ids` are the rows'."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    tags = [f'<tr id="{name}">' for name in ids] or ["<tr>"] * len(rows)
    body = "".join(
        f"{tag}{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for tag, row in zip(tags, rows, strict=True)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<table class="{style}"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
