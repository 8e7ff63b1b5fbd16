"""Records out of pieces of files: JSON lines, plain text, Parquet, Arrow and MDS, one by one.

In: a `Piece` and how to read it. Out: a `Record` for everything that is found: a document's text,
or the reason why there is none. Nothing that a file holds raises; memory stays at a few blocks,
whatever the file's size, and at the largest record that is allowed. `documents.py` reads units with
it, and `read_documents` is what the scripts in data_prep/ read with: it counts in a `Tally`.

One record is a line of JSON, a row of Parquet or Arrow, a sample of MDS, or a text file (or each of
its lines). Lone surrogates become U+FFFD; NUL characters and line ends stay.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.prepare.columns import column_records, mds_records
from restomod.prepare.files import find_files
from restomod.prepare.pieces import Piece
from restomod.prepare.records import UNREADABLE_FILE, Reading, Record, choose_fields, decode
from restomod.prepare.unpack import blocks

PROBLEMS_KEPT = 100


def read_piece(piece: Piece, reading: Reading) -> Iterator[Record]:
    """Yield every record of a piece, in order. Lone surrogates are replaced."""
    kind = piece.file.kind
    by_kind: dict[str, Callable[[Piece, Reading], Iterator[Record]]] = {
        "lines": _json_records,
        "text": lines if reading.text_documents == "line" else _whole_text,
        "parquet": column_records,
        "arrow": column_records,
        "mds": mds_records,
    }
    for record in by_kind[kind](piece, reading):
        yield record if record.reason else _checked(record)


def _checked(record: Record) -> Record:
    """Return the record with a text that can be encoded; a reason instead if there is none."""
    if not record.text or record.text.isspace():
        return Record(record.number, reason="empty_document")
    text = encodable(record.text)
    if text != record.text:
        return Record(record.number, text, undecodable=record.undecodable, surrogates=True)
    return record


def encodable(text: str) -> str:
    """Return a text with U+FFFD for its lone surrogates, which UTF-8 cannot spell."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _json_records(piece: Piece, reading: Reading) -> Iterator[Record]:
    for record in lines(piece, reading):
        if record.reason:
            yield record
            continue
        try:
            content = json.loads(record.text)
        except (ValueError, RecursionError) as error:
            yield Record(record.number, reason="broken_json", detail=str(error)[:100])
            continue
        found = choose_fields(content, reading.text_fields)
        yield Record(record.number, *found, undecodable=record.undecodable)


def lines(piece: Piece, reading: Reading) -> Iterator[Record]:
    """Yield the lines that begin in a piece; what a file that breaks off ends with is none."""
    broken: list[tuple[str, str]] = []
    skip = piece.begin > 0
    position = piece.begin - skip  # where the line begins
    number, held = 0, 0
    parts: list[bytes] = []
    for block in blocks(piece, broken):
        *ended, rest = block.split(b"\n")
        for end in ended:
            size = held + len(end)
            if skip:
                skip = False
            else:
                number += 1
                yield _line(number, parts, end, size, piece.begin, reading)
            position += size + 1
            parts, held = [], 0
            if piece.end and position >= piece.end:
                return
        held += len(rest)
        if held > reading.max_record_bytes or skip:
            parts.clear()
        else:
            parts.append(rest)
    if broken:
        reason, detail = broken[0]
        yield Record(0, reason=reason, detail=f"{detail}; lost from line {number + 1} on")
    elif held and not skip:
        yield _line(number + 1, parts, b"", held, piece.begin, reading)


def _line(
    number: int, parts: list[bytes], end: bytes, size: int, begin: int, reading: Reading
) -> Record:
    if size > reading.max_record_bytes:
        return Record(number, reason="record_too_large", detail=f"{size:,} bytes")
    line = b"".join([*parts, end]) if parts else end
    if number == 1 and not begin:
        line = line.removeprefix(b"\xef\xbb\xbf")
    if not line.strip():
        return Record(number, reason="empty_line")
    text, decoded = decode(line, reading.encoding)
    return Record(number, text, undecodable=not decoded)


def _whole_text(piece: Piece, reading: Reading) -> Iterator[Record]:
    broken: list[tuple[str, str]] = []
    parts: list[bytes] = []
    size = 0
    for block in blocks(piece, broken):
        size += len(block)
        if size <= reading.max_record_bytes:
            parts.append(block)
    if broken:
        yield Record(0, reason=broken[0][0], detail=broken[0][1])
    elif size > reading.max_record_bytes:
        yield Record(0, reason="record_too_large", detail=f"{size:,} bytes")
    else:
        text, decoded = decode(b"".join(parts).removeprefix(b"\xef\xbb\xbf"), reading.encoding)
        yield Record(0, text, undecodable=not decoded)


@dataclass
class Tally:
    """What became of the records of some files."""

    read: int = 0
    """Records found; a file broken off counts the lost rest as one."""
    kept: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of the kept documents."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Records by the reason they were dropped for."""
    altered: Counter[str] = field(default_factory=Counter)
    """Kept documents by what was changed in them."""
    skipped_files: Counter[str] = field(default_factory=Counter)
    """Files of a folder that were not read, by suffix."""
    problems: list[str] = field(default_factory=list)
    """The first messages about what was dropped."""

    def drop(self, reason: str, problem: str | None = None, records: int = 1) -> None:
        """Count records as read and dropped."""
        self.read += records
        self.dropped[reason] += records
        if problem is not None and len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(f"{problem} ({reason})")

    def keep(self, record: Record, origin: str) -> None:
        """Count a record as read and kept."""
        self.read += 1
        self.kept += 1
        self.text_bytes += len(record.text.encode())
        self.altered["lone_surrogates_replaced"] += record.surrogates
        self.altered["undecodable_bytes_replaced"] += record.undecodable
        self.altered += Counter()  # drops zeros
        if record.undecodable and len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(f"{origin}: bytes that are not UTF-8 became U+FFFD")

    def as_dict(self) -> dict[str, Any]:
        """Return the counts for a manifest."""
        return {
            "documents_read": self.read,
            "documents_kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "altered": dict(sorted(self.altered.items())),
            "skipped_files": dict(sorted(self.skipped_files.items())),
            "text_bytes": self.text_bytes,
        }


def read_documents(
    paths: Sequence[str | Path], text_field: str = "text", tally: Tally | None = None
) -> Iterator[tuple[str, str]]:
    """Yield (text, origin) of every document; origin is `file`, or `file:line` counted from 1.

    What is dropped or altered is counted in `tally`. Raises UserError for paths that `find_files`
    refuses and for unreadable files.
    """
    tally = Tally() if tally is None else tally
    found = find_files(paths)
    tally.skipped_files += found.skipped
    reading = Reading((text_field,))
    for file in found.files:
        for record in read_piece(Piece(file), reading):
            origin = f"{file.path}:{record.number}" if record.number else file.path
            if record.reason == UNREADABLE_FILE:
                raise UserError(f"{file.path}: cannot be read: {record.detail}")
            if record.reason:
                problem = f"{origin}: {record.detail}" if record.detail else None
                tally.drop(record.reason, problem, record.records)
            else:
                tally.keep(record, origin)
                yield record.text, origin


def require_documents(tally: Tally, what: Iterable[str | Path]) -> None:
    """Raise UserError when nothing was kept, saying what became of the records."""
    if tally.kept:
        return
    reasons = ", ".join(f"{reason}: {n}" for reason, n in tally.dropped.most_common())
    first = f" First: {tally.problems[0]}." if tally.problems else ""
    raise UserError(
        f"{', '.join(map(str, what))}: no document among {tally.read} records ({reasons}).{first} "
        "Check --text-field and the files"
    )
