"""First stage, a task per unit: from records to the documents that are worth keeping.

In: a `Unit`. Out, in the job's folder `read`: the unit's documents as an Arrow file (text, where it
is from, hash), their hashes in sorted order, for duplicates, and what was rejected. The result
counts documents and bytes through the steps read, quality and decontaminate. Later stages read
documents by (unit, index), the index counting those in the Arrow file.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from restomod.prepare.atomic import ESCAPED, replacing
from restomod.prepare.config import Preparation
from restomod.prepare.contamination import NgramIndex
from restomod.prepare.job import Job
from restomod.prepare.normalise import normalise
from restomod.prepare.pieces import Unit
from restomod.prepare.quality import broken_rule
from restomod.prepare.readers import read_piece
from restomod.prepare.records import Reading, Record

STAGE = "read"
EVALUATION = "evaluation"
"""Folder of the index of evaluation texts."""
STEPS = ("read", "quality", "decontaminate")
EXAMPLES = 3
"""Documents that a unit keeps as examples of each reason for which good input is dropped."""
EXAMPLE_CHARACTERS = 500
BATCH_CHARACTERS = 4_000_000
BATCH_DOCUMENTS = 4096
HASH = np.dtype([("high", "<u8"), ("low", "<u8"), ("index", "<u4")])


@dataclass
class Step:
    """Documents through a step."""

    documents_in: int = 0
    documents_out: int = 0
    text_bytes_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    altered: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts in plain form."""
        return {
            "documents_in": self.documents_in,
            "documents_out": self.documents_out,
            "text_bytes_out": self.text_bytes_out,
            "dropped": dict(sorted(self.dropped.items())),
            "altered": dict(sorted(self.altered.items())),
        }


@dataclass(frozen=True)
class Document:
    """A document of a unit."""

    text: str
    piece: int
    """Which of the unit's pieces it is from."""
    number: int
    """Line, row or sample in the piece, counted from 1; 0 if it is the whole piece."""
    choice: int
    """64 bits of its hash, by which it is trained on or held out."""


def reading_of(recipe: Preparation, source: str) -> Reading:
    """Return how a source's records are read."""
    config = recipe.sources[source]
    return Reading(
        text_fields=tuple(config.text_fields),
        encoding=config.encoding,
        text_documents=config.text_documents,
        max_record_bytes=int(recipe.reading.max_record_mb * 1e6),
    )


def texts_file(job: Job, unit: int) -> Path:
    """Return the Arrow file with a unit's documents."""
    return job.stage(STAGE) / "texts" / f"{unit:06d}.arrow"


def hashes_file(job: Job, unit: int) -> Path:
    """Return the file with a unit's hashes, [documents] of type `HASH`, sorted."""
    return job.stage(STAGE) / "hashes" / f"{unit:06d}.npy"


def rejects_file(job: Job, unit: int) -> Path:
    """Return the file that lists what a unit rejected."""
    return job.stage(STAGE) / "rejects" / f"{unit:06d}.jsonl"


def read_unit(job: Job, unit: Unit) -> dict[str, Any]:
    """Read, normalise and filter a unit's documents; return what was counted."""
    work = _UnitWork(job, unit)
    with replacing(texts_file(job, unit.number)) as partial, _writer(partial) as write:
        for piece in range(len(unit.pieces)):
            for document in work.documents(piece):
                write(document)
    with replacing(hashes_file(job, unit.number)) as partial, partial.open("wb") as file:
        np.save(file, work.sorted_hashes())
    with replacing(rejects_file(job, unit.number)) as partial:
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in work.rejects)
        partial.write_text("".join(lines), encoding="utf-8", errors=ESCAPED)
    return work.result()


class _UnitWork:
    """The documents of a unit, and what became of its records."""

    def __init__(self, job: Job, unit: Unit) -> None:
        self._recipe = job.recipe
        self._unit = unit
        self._reading = reading_of(job.recipe, unit.source)
        against = job.recipe.decontaminate.against
        self._index = _evaluation_index(str(job.stage(EVALUATION))) if against else None
        self._steps = {name: Step() for name in STEPS}
        self._lines: list[int] = []
        self._hashes: list[bytes] = []
        self.rejects: list[dict[str, Any]] = []

    def documents(self, piece: int) -> Iterator[Document]:
        """Yield the documents of a piece that pass."""
        self._lines.append(0)
        for record in read_piece(self._unit.pieces[piece], self._reading):
            self._lines[piece] = max(self._lines[piece], record.number)
            text = self._read(piece, record)
            if text and self._filter(piece, record, text):
                digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
                self._hashes.append(digest)
                choice = int.from_bytes(digest[8:], "little")
                yield Document(text, piece, record.number, choice)

    def _read(self, piece: int, record: Record) -> str:
        """Return a record's normalised text, empty if it has none."""
        step = self._steps["read"]
        step.documents_in += record.records
        reason, detail = record.reason, record.detail
        if record.undecodable and self._recipe.reading.undecodable == "drop":
            reason, detail = "undecodable", f"bytes that are not {self._reading.encoding}"
        text = "" if reason else normalise(record.text, self._recipe.normalise)
        if not text:
            reason = reason or "empty_document"
            step.dropped[reason] += record.records
            self.rejects.append(_reject("read", piece, record.number, reason, detail))
            return ""
        step.documents_out += 1
        step.text_bytes_out += len(text.encode())
        step.altered["undecodable_bytes_replaced"] += record.undecodable
        step.altered["lone_surrogates_replaced"] += record.surrogates
        step.altered["normalised"] += text != record.text
        step.altered += Counter()  # drops zeros
        return text

    def _filter(self, piece: int, record: Record, text: str) -> bool:
        """Return whether a document is worth keeping."""
        size = len(text.encode())
        for name, judge in (("quality", self._quality), ("decontaminate", self._contamination)):
            step = self._steps[name]
            step.documents_in += 1
            reason, detail = judge(text)
            if reason:
                step.dropped[reason] += 1
                if step.dropped[reason] <= EXAMPLES:
                    entry = _reject(name, piece, record.number, reason, detail)
                    self.rejects.append({**entry, "text": text[:EXAMPLE_CHARACTERS]})
                return False
            step.documents_out += 1
            step.text_bytes_out += size
        return True

    def _quality(self, text: str) -> tuple[str, str]:
        return broken_rule(text, self._recipe.quality), ""

    def _contamination(self, text: str) -> tuple[str, str]:
        if self._index is None:
            return "", ""
        overlap = self._index.overlap(text)
        if overlap.share <= self._recipe.decontaminate.max_share:
            return "", ""
        detail = f"{overlap.share:.1%} in {overlap.evaluation_set}: {overlap.first}"
        return "contaminated", detail

    def sorted_hashes(self) -> np.ndarray:
        """Return the documents' hashes, sorted, equal ones in the order of the documents."""
        hashes = np.empty(len(self._hashes), HASH)
        halves = np.frombuffer(b"".join(self._hashes), "<u8").reshape(-1, 2)
        hashes["high"], hashes["low"] = halves[:, 0], halves[:, 1]
        hashes["index"] = np.arange(len(hashes))
        return hashes[np.lexsort((hashes["index"], hashes["low"], hashes["high"]))]

    def result(self) -> dict[str, Any]:
        return {
            "source": self._unit.source,
            "lines": self._lines,
            "documents": self._steps["decontaminate"].documents_out,
            "text_bytes": self._steps["decontaminate"].text_bytes_out,
            "steps": {name: step.as_dict() for name, step in self._steps.items()},
        }


def _reject(stage: str, piece: int, number: int, reason: str, detail: str) -> dict[str, Any]:
    return {"stage": stage, "piece": piece, "line": number, "reason": reason, "detail": detail}


@lru_cache(maxsize=1)
def _evaluation_index(folder: str) -> NgramIndex:
    return NgramIndex.load(Path(folder))


@contextmanager
def _writer(path: Path) -> Iterator[Any]:
    """Open an Arrow file for documents, which are written a batch at a time."""
    import pyarrow as pa

    schema = pa.schema(
        {"text": pa.string(), "piece": pa.int32(), "number": pa.int64(), "choice": pa.uint64()}
    )
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    batch: list[Document] = []
    characters = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as out:

        def flush() -> None:
            nonlocal batch, characters
            rows = [[getattr(d, name) for d in batch] for name in schema.names]
            arrays = [pa.array(r, f.type) for r, f in zip(rows, schema, strict=True)]
            out.write_batch(pa.record_batch(arrays, schema=schema))
            batch, characters = [], 0

        def write(document: Document) -> None:
            nonlocal characters
            batch.append(document)
            characters += len(document.text)
            if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
                flush()

        yield write
        if batch:
            flush()


def stored_documents(job: Job, unit: int, dropped: np.ndarray) -> Iterator[list[Document]]:
    """Yield a unit's documents in batches, in order and without those in `dropped`, which holds
    indices in ascending order."""
    import pyarrow as pa

    leave_out = set(dropped.tolist())
    index = 0
    with pa.memory_map(str(texts_file(job, unit))) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            kept = [
                Document(*row) for index, row in enumerate(rows, index) if index not in leave_out
            ]
            index += batch.num_rows
            if kept:
                yield kept


def origins(job: Job, unit: int, wanted: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return {index: (piece, number)} of some of a unit's documents."""
    everything = (
        document
        for batch in stored_documents(job, unit, np.empty(0, np.int64))
        for document in batch
    )
    chosen = set(wanted)
    return {
        index: (document.piece, document.number)
        for index, document in enumerate(everything)
        if index in chosen
    }
