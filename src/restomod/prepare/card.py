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
from typing import TypedDict

from restomod.errors import UserError
from restomod.prepare import card_sections as sections
from restomod.prepare.card_figures import lengths
from restomod.prepare.card_values import text
from restomod.tools.pages.frame import Page, Part, write_page


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    page = Page(
        kind="data card",
        name=text(manifest, "name") or path.stem,
        summary=[escape(text(manifest, "description")), sections.summary(manifest)],
        parts=[
            Part("domains", "Domains", sections.domains(manifest)),
            Part("sources", "Sources", sections.sources(manifest)),
            Part("stages", "What was dropped, and why", sections.stages(manifest)),
            Part("lengths", "Length of documents", lengths(manifest)),
            Part("tokenizer", "Tokenizer", sections.tokenizer(manifest)),
            Part("rejects", "Examples of what was dropped", sections.rejects(manifest)),
            Part("versions", "Versions", sections.versions(manifest)),
        ],
        notices=sections.notices(manifest),
        status=sections.status(manifest),
        footer=f"Prepared {text(manifest, 'created') or 'at an unknown time'}.",
        style=EXTRA_STYLE,
    )
    write_page(path, page)


EXTRA_STYLE = """
.plot .column { fill: var(--accent); }
table.text th, table.text td { text-align: left; vertical-align: top; }
table.text td { white-space: normal; overflow-wrap: anywhere; }
table.names2 :is(th, td):nth-child(-n+2) { text-align: left; }
table.names3 :is(th, td):nth-child(-n+3) { text-align: left; }
.scroll + .scroll, .where + .scroll { margin-top: 1.25rem; }
article h3 { margin-bottom: .4rem; overflow-wrap: anywhere; }
"""
