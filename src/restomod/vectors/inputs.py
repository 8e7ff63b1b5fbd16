"""Rows of text out of Parquet and JSON lines, in order, in bounded memory, from any row on.

In: files, folders, patterns or remotes, and the columns that are wanted. Out: `Rows`, some hundreds
at a time. A row without a text is a row nevertheless: what is made of the texts stays in step with
the input. `bulk.py` is the caller.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from restomod.errors import UserError
from restomod.prepare.columns import ROWS_AT_ONCE, as_bytes, column_of, type_of, wrong_column
from restomod.prepare.files import InputFile, find_files, open_file
from restomod.prepare.pieces import Piece
from restomod.prepare.readers import encodable, lines
from restomod.prepare.records import (
    BROKEN_FILE,
    UNREADABLE_FILE,
    Reading,
    Record,
    decode,
    look_up,
)

log = logging.getLogger(__name__)

NAMED_PROBLEMS = 5
"""Rows without a text that are named; the others are counted."""
COUNTED_FILES = 256
"""Parquet files that are asked for their number of rows beforehand, at most."""
Complain = Callable[[str, str], None]


class Rows(NamedTuple):
    """Consecutive rows."""

    texts: list[str | None]
    """None where there is no text."""
    kept: list[pa.Array]
    """The other columns that are asked for."""


@dataclass
class Columns:
    """What is read of each row: columns, or fields inside them, as in meta.title."""

    text: str
    kept: Sequence[str] = ()
    types: list[pa.DataType] = field(default_factory=list)
    """Of `kept`, as the first file has them."""


class Reader:
    """Reads the rows of all files, one after the other."""

    def __init__(self, paths: Sequence[str], columns: Columns) -> None:
        """Raises UserError for what cannot be read, and for a first file that lacks a column."""
        self.files = find_files(paths).files
        other = [file.path for file in self.files if file.kind not in ("parquet", "lines")]
        if other:
            raise UserError(f"{other[0]}: only Parquet files and JSON lines are embedded")
        self.columns = columns
        self.position = 0
        """Rows that were passed so far."""
        self.without_text: Counter[str] = Counter()
        """Of those read, the rows that have no text, by reason."""
        self._next = 0
        self._source: _Parquet | _Lines | None = None
        types = (self._open(file).types() for file in self.files)
        found = next((found for found in types if found is not None), None)
        if found is None:
            raise UserError(f"{', '.join(paths)}: holds no rows")
        columns.types = found

    @property
    def rows(self) -> int | None:
        """Rows of all files; None if they do not say, or are too many to be asked."""
        if len(self.files) > COUNTED_FILES or any(f.kind != "parquet" for f in self.files):
            return None
        return sum(_Parquet(file, self.columns, self._complain).rows for file in self.files)

    def skip(self, count: int) -> int:
        """Pass over `count` rows; return how many there were."""
        skipped = 0
        while skipped < count and (source := self._current()):
            step = source.skip(count - skipped)
            skipped += step
            if step == 0:
                self._source = None
        self.position += skipped
        return skipped

    def take(self, count: int) -> Iterator[Rows]:
        """Yield the next `count` rows, or those that are left."""
        while count and (source := self._current()):
            rows = source.take(min(count, ROWS_AT_ONCE))
            count -= len(rows.texts)
            self.position += len(rows.texts)
            if rows.texts:
                yield rows
            else:
                self._source = None

    def _current(self) -> _Parquet | _Lines | None:
        if self._source is None and self._next < len(self.files):
            self._source = self._open(self.files[self._next])
            self._next += 1
        return self._source

    def _open(self, file: InputFile) -> _Parquet | _Lines:
        kind = _Parquet if file.kind == "parquet" else _Lines
        return kind(file, self.columns, self._complain)

    def _complain(self, place: str, reason: str) -> None:
        self.without_text[reason] += 1
        if self.without_text.total() <= NAMED_PROBLEMS:
            log.warning("%s: no text: %s", place, reason)


class _Parquet:
    """The rows of a Parquet file; row groups that are passed over are not read."""

    def __init__(self, file: InputFile, columns: Columns, complain: Complain) -> None:
        self._path = file.path
        self._columns = columns
        self._complain = complain
        try:
            self._file = pq.ParquetFile(open_file(file.path))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file.path}: cannot be read as Parquet: {_brief(error)}") from None
        schema = self._file.schema_arrow
        for name in (columns.text, *columns.kept):
            if type_of(schema, name) is None:
                raise _no_column(file.path, name, schema.names)
        if wrong := wrong_column(schema, (columns.text,)):
            raise UserError(f"{file.path}: {wrong[1]}; --text-column names the one with texts")
        for name, kind in zip(columns.kept, columns.types, strict=False):
            if (found := type_of(schema, name)) != kind:
                raise UserError(
                    f"{file.path}: {name!r} holds {found}, and {kind} in the first file"
                )
        self.rows: int = self._file.metadata.num_rows
        self._position = 0
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._left: pa.RecordBatch | None = None

    def types(self) -> list[pa.DataType] | None:
        """Return the types of the kept columns; None of a file without rows."""
        kept = [type_of(self._file.schema_arrow, name) for name in self._columns.kept]
        return kept if self.rows else None

    def skip(self, count: int) -> int:
        count = min(count, self.rows - self._position)
        self._position += count
        self._batches = self._left = None
        return count

    def take(self, count: int) -> Rows:
        """Return up to `count` rows; none at the end."""
        try:
            batch = self._batch(count)
            texts = as_bytes(batch.column(0)) if batch else []
        # MemoryError: a damaged length, of which nothing that large can be allocated.
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            raise _broken(self._path, self._position, _brief(error)) from None
        first = self._position + 1
        self._position += len(texts)
        kept = batch.columns[1:] if batch else []
        return Rows([self._text(n, value) for n, value in enumerate(texts, first)], kept)

    def _batch(self, count: int) -> pa.RecordBatch | None:
        if self._batches is None:
            self._batches = self._from(self._position)
        batch = self._left or next(self._batches, None)
        self._left = batch.slice(count) if batch else None
        return batch and batch.slice(0, count)

    def _from(self, row: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows from `row` on."""
        sizes = [
            self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)
        ]
        groups = list(range(len(sizes)))
        while groups and row >= sizes[groups[0]]:
            row -= sizes[groups.pop(0)]
        names = [self._columns.text, *self._columns.kept]
        for batch in self._file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=names):
            batch.validate()
            if row < len(batch):
                columns = [column_of(batch, name) for name in names]
                yield pa.RecordBatch.from_arrays(columns, names).slice(row)
            row = max(0, row - len(batch))

    def _text(self, number: int, value: bytes | None) -> str | None:
        if value is None:
            self._complain(f"{self._path}, row {number}", "null")
            return None
        return decode(value)[0]


class _Lines:
    """The rows of a file of JSON objects, one a line; empty lines are none."""

    def __init__(self, file: InputFile, columns: Columns, complain: Complain) -> None:
        self._path = file.path
        self._columns = columns
        self._complain = complain
        records = lines(Piece(file), Reading())
        self._records = (record for record in records if record.reason != "empty_line")

    def types(self) -> list[pa.DataType] | None:
        """Return the types of the kept columns by the first object; None if there is none."""
        for record in self._checked():
            if (row := _object(record)) is not None:
                for name in (self._columns.text, *self._columns.kept):
                    if not look_up(row, name)[0]:
                        raise _no_column(f"{self._path}, line {record.number}", name, list(row))
                return [_type_of(look_up(row, name)[1]) for name in self._columns.kept]
        return None

    def skip(self, count: int) -> int:
        return sum(1 for _ in zip(range(count), self._checked(), strict=False))

    def take(self, count: int) -> Rows:
        """Return up to `count` rows; none at the end."""
        texts: list[str | None] = []
        kept: list[list[Any]] = [[] for _ in self._columns.kept]
        for _, record in zip(range(count), self._checked(), strict=False):
            place = f"{self._path}, line {record.number}"
            row = _object(record)
            text = look_up(row or {}, self._columns.text)[1]
            if not isinstance(text, str):
                null = "null" if text is None else "no string"
                self._complain(place, "no JSON object" if row is None else null)
                text = None
            texts.append(text if text is None else encodable(text))
            for values, name, kind in zip(
                kept, self._columns.kept, self._columns.types, strict=True
            ):
                values.append(_value(place, name, look_up(row or {}, name)[1], kind))
        arrays = [pa.array(v, kind) for v, kind in zip(kept, self._columns.types, strict=True)]
        return Rows(texts, arrays)

    def _checked(self) -> Iterator[Record]:
        for record in self._records:
            if record.reason in (BROKEN_FILE, UNREADABLE_FILE):
                raise UserError(f"{self._path}: cannot be read to its end: {record.detail}")
            yield record


def _object(record: Record) -> dict[str, Any] | None:
    """Return the object in a line; None if there is none."""
    try:
        row = None if record.reason else json.loads(record.text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _type_of(value: Any) -> pa.DataType:
    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return kinds.get(type(value), pa.string())


def _value(place: str, name: str, value: Any, kind: pa.DataType) -> Any:
    """Return a value as a column of that type takes it; what is no text becomes JSON in a column of
    texts."""
    if value is None:
        return None
    if kind == pa.string():
        return encodable(value) if isinstance(value, str) else json.dumps(value)
    found = _type_of(value)
    if found == kind or (found == pa.int64() and kind == pa.float64()):
        return value
    seen = type(value).__name__
    raise UserError(f"{place}: {name!r} holds a {seen}, and {kind} in the first row")


def _no_column(place: str, name: str, names: Sequence[str]) -> UserError:
    return UserError(f"{place}: has no column {name!r}; there are: {', '.join(names[:20])}")


def _broken(path: str, row: int, reason: str) -> UserError:
    return UserError(f"{path}: cannot be read from row {row + 1} on: {reason}")


def _brief(error: BaseException) -> str:
    return str(error).split("\n")[0][:200]
