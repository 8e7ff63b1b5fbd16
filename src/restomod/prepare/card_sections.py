"""Write the data card's sections other than its figures.

In: the manifest as `card.CardManifest` describes it, any part of which may be absent or of another
type. Out: HTML strings, every string from the manifest escaped; empty ones for sections with
nothing to say. `card.write_card` calls this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from restomod.prepare.card_values import (
    COUNTS,
    UNNAMED,
    Manifest,
    by_domain,
    counts_of,
    measure_of,
    ratio,
    records,
    share_bar,
    text,
    total_of,
)
from restomod.tools.pages.charts import si
from restomod.tools.pages.markup import NONE, bytes_text, passage, plain, table, times
from restomod.tools.record.metrics_log import number, numbers
from restomod.units import counted, duration

SHOWN_REJECTS = 60
SHOWN_CHARACTERS = 1200


def summary(manifest: Manifest) -> str:
    """Say in a line how much there is."""
    sources = list(records(manifest, "sources"))
    documents, tokens, size = (total_of(sources, key) for key in COUNTS)
    if documents is None:
        return "The manifest names no source with documents."
    of_tokens = "" if tokens is None else f"{si(tokens)} tokens in "
    of_text = "" if size is None else f", {bytes_text(size)} of text"
    return f"{of_tokens}{si(documents)} documents{of_text}, from {counted(len(sources), 'source')}."


def status(manifest: Manifest) -> list[tuple[str, str, str]]:
    """Return the data set's numbers, each with what it means."""
    sources, stages = list(records(manifest, "sources")), list(records(manifest, "stages"))
    documents, tokens, size = (total_of(sources, key) for key in COUNTS)
    licences = {text(source, "licence") for source in sources} - {""}
    read = number(stages[0].get("documents_in")) if stages else None
    kept = number(stages[-1].get("documents_out")) if stages else None
    seconds = number(manifest.get("seconds"))
    cells = [
        ("Tokens", NONE if tokens is None else si(tokens), plain(tokens)),
        ("Documents", NONE if documents is None else si(documents), plain(documents)),
        ("Text", bytes_text(size), "UTF-8"),
        ("Mean length", ratio(tokens, documents, 0), "tokens of a document"),
        ("Bytes per token", ratio(size, tokens), ""),
        (
            "Sources",
            f"{len(sources)}",
            f"{times(len(licences), 'licence')} named",
        ),
        ("Kept", NONE if kept is None or not read else f"{kept / read:.1%}", "of documents read"),
        ("Wall time", NONE if seconds is None else duration(seconds), ""),
    ]
    return [cell for cell in cells if cell[1] != NONE]


def notices(manifest: Manifest) -> list[str]:
    """Return the manifest's own notes and what in it does not add up."""
    notes = manifest.get("notes")
    found = [str(note) for note in notes] if isinstance(notes, list | tuple) else []
    nameless = [
        text(source, "name") or UNNAMED
        for source in records(manifest, "sources")
        if not text(source, "licence")
    ]
    if nameless:
        found.append(f"No licence is named for: {', '.join(nameless)}.")
    before: float | None = None
    for stage in records(manifest, "stages"):
        name = text(stage, "name") or UNNAMED
        entered, left = number(stage.get("documents_in")), number(stage.get("documents_out"))
        if before is not None and entered is not None and entered != before:
            found.append(
                f"Stage {name} took in {entered:,.0f} documents, and the one before it let out "
                f"{before:,.0f}."
            )
        dropped = sum(counts_of(stage, "dropped").values())
        if entered is not None and left is not None and entered - left != dropped:
            found.append(
                f"Stage {name} lost {entered - left:,.0f} documents and gives reasons for "
                f"{dropped:,.0f}."
            )
        before = left
    return found


def domains(manifest: Manifest) -> str:
    """Tabulate the domains, the largest first."""
    grouped = by_domain(manifest)
    everything = [source for sources in grouped.values() for source in sources]
    if not everything:
        return ""
    measure = measure_of(everything)
    total = total_of(everything, measure)

    def row(name: str, sources: Sequence[Manifest]) -> list[str]:
        documents, tokens, size = (total_of(sources, key) for key in COUNTS)
        return [
            name,
            f"{len(sources)}",
            plain(documents),
            plain(tokens),
            bytes_text(size),
            share_bar(total_of(sources, measure), total),
            ratio(tokens, documents, 0),
            ratio(size, tokens),
        ]

    order = sorted(grouped, key=lambda name: (-(total_of(grouped[name], measure) or 0), name))
    rows = [row(escape(name), grouped[name]) for name in order]
    if len(rows) > 1:
        rows.append(row("<b>all</b>", everything))
    of = "tokens" if measure == "tokens" else "text"
    head = ["domain", "sources", "documents", "tokens", "text", f"share of {of}"]
    head += ["tokens per document", "bytes per token"]
    return table(head, rows, "Domains", "wide")


def sources(manifest: Manifest) -> str:
    """Tabulate the sources, in the manifest's order."""
    every = list(records(manifest, "sources"))
    if not every:
        return ""
    measure = measure_of(every)
    total = total_of(every, measure)
    counted, described = [], []
    for source in every:
        name = escape(text(source, "name") or UNNAMED)
        documents, tokens, size = (number(source.get(key)) for key in COUNTS)
        counted.append(
            [
                name,
                escape(text(source, "domain")),
                plain(documents),
                plain(tokens),
                bytes_text(size),
                share_bar(number(source.get(measure)), total),
                plain(_held_out(source)),
            ]
        )
        licence = escape(text(source, "licence")) or NONE
        described.append(
            [name, licence, _link(text(source, "url")), escape(text(source, "description"))]
        )
    of = "tokens" if measure == "tokens" else "text"
    head = ["source", "domain", "documents", "tokens", "text", f"share of {of}", "held out"]
    origin = ["source", "licence", "from", "description"]
    return table(head, counted, "Size of the sources", "wide names2") + table(
        origin, described, "Origin of the sources", "wide text"
    )


def _held_out(source: Manifest) -> float | None:
    """Return how many documents are for evaluation; None if the manifest has no splits."""
    splits = source.get("splits")
    if not isinstance(splits, Mapping):
        return None
    of_split = splits.get("heldout")
    return number(of_split.get("documents")) if isinstance(of_split, Mapping) else 0


def _link(address: str) -> str:
    if not address.lower().startswith(("http://", "https://")):
        return escape(address) or NONE
    return f'<a href="{escape(address)}" rel="noreferrer">{escape(address)}</a>'


def stages(manifest: Manifest) -> str:
    """Tabulate how many documents passed each stage, and why the others did not."""
    every = list(records(manifest, "stages"))
    read = next((n for s in every if (n := number(s.get("documents_in"))) is not None), None)
    rows, reasons = [], []
    for stage in every:
        name = escape(text(stage, "name") or UNNAMED)
        entered, left = number(stage.get("documents_in")), number(stage.get("documents_out"))
        dropped = None if entered is None or left is None else entered - left
        seconds = number(stage.get("seconds"))
        rows.append(
            [
                name,
                plain(entered),
                plain(dropped),
                plain(left),
                share_bar(left, read),
                bytes_text(number(stage.get("text_bytes_out"))),
                NONE if seconds is None else duration(seconds),
            ]
        )
        for what in ("dropped", "altered"):
            counts = counts_of(stage, what)
            for reason in sorted(counts, key=lambda reason: (-counts[reason], reason)):
                amount = counts[reason]
                reasons.append(
                    [name, what, escape(reason), plain(amount), share_bar(amount, entered)]
                )
    if not rows:
        return ""
    head = ["stage", "documents in", "dropped", "documents out", "of all read", "text out", "time"]
    shown = table(head, rows, "Documents that passed each stage", "wide")
    head = ["stage", "", "reason", "documents", "of those that came in"]
    return shown + (table(head, reasons, "Reasons by stage", "wide names3") if reasons else "")


def tokenizer(manifest: Manifest) -> str:
    """Describe the tokenizer, and how well it suits each domain."""
    described = manifest.get("tokenizer")
    if not isinstance(described, Mapping):
        return ""
    size = number(described.get("vocab_size"))
    facts = [
        ("Path", escape(text(described, "path"))),
        ("Fingerprint", escape(text(described, "fingerprint"))),
        ("Vocabulary", "" if size is None else f"{size:,.0f} tokens"),
    ]
    listed = "".join(f"<dt>{what}</dt><dd><code>{v}</code></dd>" for what, v in facts if v)
    rows = []
    fertility = described.get("fertility")
    for domain, of_domain in fertility.items() if isinstance(fertility, Mapping) else ():
        for name, values in of_domain.items() if isinstance(of_domain, Mapping) else ():
            measured = numbers(values)
            rows.append(
                [
                    escape(str(domain)),
                    escape(str(name)),
                    plain(measured.get("words")),
                    ratio(measured.get("tokens_per_word"), 1, 3),
                    ratio(measured.get("bytes_per_token"), 1, 3),
                    share_bar(measured.get("unknown_share"), 1),
                    share_bar(measured.get("piece_share"), 1),
                ]
            )
    head = ["domain", "tokenizer", "words sampled", "tokens per word", "bytes per token"]
    head += ["unknown tokens", "pieces of characters"]
    shown = table(head, rows, "Fertility by domain", "wide names2") if rows else ""
    return (f'<dl class="where">{listed}</dl>' if listed else "") + shown


def rejects(manifest: Manifest) -> str:
    """Show examples of dropped documents."""
    every = list(records(manifest, "rejects"))
    cards = []
    for reject in every[:SHOWN_REJECTS]:
        title = ": ".join(filter(None, (text(reject, "stage"), text(reject, "reason"))))
        said = text(reject, "text")
        said = said if len(said) <= SHOWN_CHARACTERS else said[:SHOWN_CHARACTERS] + "…"
        notes = [escape(text(reject, key)) for key in ("detail", "source", "origin")]
        cards.append(
            f"<article><h3>{escape(title or UNNAMED)}</h3>"
            f"{passage(escape(said))}<p>{'<br>'.join(filter(None, notes))}</p>"
            "</article>"
        )
    if not cards:
        return ""
    some = ""
    if len(every) > SHOWN_REJECTS:
        some = f'<p class="note">The first {SHOWN_REJECTS} of {len(every)}.</p>'
    return f'{some}<div class="cards">{"".join(cards)}</div>'


def versions(manifest: Manifest) -> str:
    """Tabulate the versions of programs and libraries."""
    named = manifest.get("versions")
    if not isinstance(named, Mapping) or not named:
        return ""
    rows = [[escape(str(name)), escape(str(version))] for name, version in named.items()]
    return table(["program or library", "version"], rows, "Versions", "names2")
