"""The data card: a page that says what a data set holds, where it is from and what was left out.

In: the manifest of a preparation, in the form of `CardManifest`. Out: an HTML file that opens
offline, years later, in the look of the runs' reports; nothing in it loads another file or address.
Every part is optional: what the manifest does not hold is left out, and what does not add up is
said. The pipeline calls this when its data is written, and again after any change.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import TypedDict

from restomod.errors import UserError
from restomod.prepare import card_sections as sections
from restomod.prepare.card_figures import lengths
from restomod.prepare.card_values import text
from restomod.tools import pages


class SourceCard(TypedDict, total=False):
    """One source, as it stands in the data set."""

    name: str
    domain: str
    licence: str
    """Name or SPDX identifier."""
    url: str
    """Where it comes from: an address, or a path."""
    description: str
    documents: int
    text_bytes: int
    """UTF-8 bytes."""
    tokens: int
    length_histogram: dict[str, int]
    """Documents by length, as in restomod.json: "64" counts those of 64 to 127 tokens."""
    splits: dict[str, dict[str, int]]
    """Documents, tokens and bytes of `train` and `heldout`."""


class StageCard(TypedDict, total=False):
    """One stage of the preparation, in the order in which documents pass."""

    name: str
    documents_in: int
    documents_out: int
    text_bytes_in: int
    text_bytes_out: int
    dropped: dict[str, int]
    """Documents by the reason they were dropped for; adds up to in - out."""
    altered: dict[str, int]
    """Documents that stay, by what was changed in them."""
    seconds: float
    """Wall time."""


class RejectCard(TypedDict, total=False):
    """One document that was dropped, as an example."""

    stage: str
    reason: str
    source: str
    origin: str
    """File and line, or whatever finds it again."""
    detail: str
    """What exactly was found: a score, the copied n-gram, the document it repeats."""
    text: str
    """Its text, or the beginning."""


class TokenizerCard(TypedDict, total=False):
    """The tokenizer that the data was tokenised with."""

    path: str
    fingerprint: str
    """sha256 of what decides ids."""
    vocab_size: int
    fertility: dict[str, dict[str, dict[str, float]]]
    """By domain, then tokenizer: what `Fertility.as_dict` returns."""


class CardManifest(TypedDict, total=False):
    """What the card reads of a manifest; other keys are left alone."""

    name: str
    description: str
    created: str
    """Date and time, as text."""
    seconds: float
    """Wall time of the whole preparation."""
    sources: list[SourceCard]
    stages: list[StageCard]
    rejects: list[RejectCard]
    tokenizer: TokenizerCard
    versions: dict[str, str]
    """Programs and libraries."""
    notes: list[str]
    """Anything that whoever uses the data must know; shown at the top."""


def write_card(manifest: Mapping[str, object], path: Path) -> None:
    """Write the card of a manifest (see `CardManifest`) to `path`, whole or not at all.

    All text is escaped, and only http and https addresses become links. Raises UserError when the
    manifest is not a mapping or the file cannot be written.
    """
    if not isinstance(manifest, Mapping):
        raise UserError(f"{path}: a data card needs a manifest, not a {type(manifest).__name__}")
    parts = [
        ("domains", "Domains", sections.domains(manifest)),
        ("sources", "Sources", sections.sources(manifest)),
        ("stages", "What was dropped, and why", sections.stages(manifest)),
        ("lengths", "Length of documents", lengths(manifest)),
        ("tokenizer", "Tokenizer", sections.tokenizer(manifest)),
        ("rejects", "Examples of what was dropped", sections.rejects(manifest)),
        ("versions", "Versions", sections.versions(manifest)),
    ]
    parts = [part for part in parts if part[2]]
    notices = sections.notices(manifest)
    page = Template(PAGE).substitute(
        style=pages.style() + EXTRA_STYLE,
        name=escape(text(manifest, "name") or path.stem),
        description=escape(text(manifest, "description")),
        summary=sections.summary(manifest),
        notices="".join(f"<li>{escape(notice)}</li>" for notice in notices),
        status=sections.status(manifest),
        links="".join(f'<a href="#{slug}">{title}</a>' for slug, title, _ in parts),
        sections="".join(
            f'<section id="{slug}"><h2>{title}</h2>{body}</section>' for slug, title, body in parts
        ),
        created=escape(text(manifest, "created") or "at an unknown time"),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pages.write_page(path, page)
    except OSError as error:
        raise UserError(f"{path}: the data card cannot be written: {error.strerror}") from error


EXTRA_STYLE = """
.plot .column { fill: var(--accent); }
table.text th, table.text td { text-align: left; vertical-align: top; }
table.text td { white-space: normal; overflow-wrap: anywhere; }
table.names2 :is(th, td):nth-child(-n+2) { text-align: left; }
table.names3 :is(th, td):nth-child(-n+3) { text-align: left; }
.scroll + .scroll, .where + .scroll { margin-top: 1.25rem; }
article h3 { margin-bottom: .4rem; overflow-wrap: anywhere; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$name: data card</title>
<style>$style</style>
</head>
<body>
<header>
  <p class="eyebrow">restomod data card</p>
  <h1>$name</h1>
  <p class="summary">$description</p>
  <p class="summary">$summary</p>
  <ul class="notices">$notices</ul>
  <dl class="status">$status</dl>
</header>
<nav aria-label="Sections">$links</nav>
<main>
$sections
</main>
<footer>Prepared $created.</footer>
</body>
</html>
"""
