"""Records out of files with columns: Parquet, Arrow and MDS.

In: a `Piece` of such a file and the fields to read. Out: `Record`s; one that says so where a file
breaks off. `readers.py` is the caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from restomod.data.mds import decompress
from restomod.prepare.files import open_file, read_bytes
from restomod.prepare.pieces import Piece
from restomod.prepare.records import (
    BROKEN_FILE,
    FIELD_SEPARATOR,
    UNREADABLE_FILE,
    Reading,
    Record,
    decode,
    null_fields,
)

ROWS_AT_ONCE = 256


def column_records(piece: Piece, reading: Reading) -> Iterator[Record]:
    """Yield a record for each row of a Parquet file's row groups, or of an Arrow file."""
    import pyarrow as pa

    row = 0
    try:
        opened = _parquet if piece.file.kind == "parquet" else _arrow
        with opened(piece) as (schema, rows, batches):
            wrong = wrong_column(schema, reading.text_fields)
            if wrong:
                reason, detail = wrong
                yield Record(0, reason=reason, detail=detail, records=max(1, rows()))
                return
            for batch in batches(list(reading.text_fields)):
                batch.validate()
                columns = [as_bytes(column_of(batch, name)) for name in reading.text_fields]
                for values in zip(*columns, strict=True):
                    row += 1
                    yield _row(row, values, reading)
    except (FileNotFoundError, PermissionError) as error:
        yield Record(0, reason=UNREADABLE_FILE, detail=error.strerror or str(error))
    # MemoryError: a damaged length, of which nothing that large can be allocated.
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        message = str(error).split("\n")[0][:200]
        detail = f"{message}; lost from row {row + 1} on"
        yield Record(0, reason=BROKEN_FILE, detail=detail)


def _row(number: int, values: tuple[bytes | None, ...], reading: Reading) -> Record:
    texts, decoded = [], True
    for value in values:
        if value is None:  # no text: its field is left out
            continue
        text, whole = decode(value)
        texts.append(text)
        decoded &= whole
    if not texts:
        return Record(number, reason="non_string_field", detail=null_fields(reading.text_fields))
    size = sum(len(value) for value in values if value is not None)
    if size > reading.max_record_bytes:
        return Record(number, reason="record_too_large", detail=f"{size:,} bytes")
    return Record(number, FIELD_SEPARATOR.join(texts), undecodable=not decoded)


@contextmanager
def _parquet(piece: Piece) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with open_file(piece.file.path) as file, pq.ParquetFile(file) as parquet:
        groups = range(piece.begin, piece.end or parquet.metadata.num_row_groups)

        def rows() -> int:
            return sum(parquet.metadata.row_group(n).num_rows for n in groups)

        def batches(names: list[str]) -> Iterator[Any]:
            yield from parquet.iter_batches(ROWS_AT_ONCE, row_groups=list(groups), columns=names)

        yield parquet.schema_arrow, rows, batches


@contextmanager
def _arrow(piece: Piece) -> Iterator[Any]:
    """Open an Arrow stream (as `save_to_disk` writes) or file."""
    import pyarrow as pa

    with open_file(piece.file.path) as file:
        head = file.read(6)
        file.seek(0)
        reader = pa.ipc.open_file(file) if head == b"ARROW1" else pa.ipc.open_stream(file)

        def batches(names: list[str]) -> Iterator[Any]:
            if head == b"ARROW1":
                yield from (reader.get_batch(n) for n in range(reader.num_record_batches))
            else:
                yield from reader

        def rows() -> int:
            return sum(batch.num_rows for batch in batches([]))

        yield reader.schema, rows, batches


def wrong_column(schema: Any, fields: tuple[str, ...]) -> tuple[str, str] | None:
    import pyarrow as pa

    for name in fields:
        kind = type_of(schema, name)
        if kind is None:
            known = ", ".join(names_of(schema)[:20])
            return "missing_field", f"no column {name!r} among: {known}"
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not _is_stringlike(pa.types, kind):
            return "non_string_field", f"{name!r} holds {kind}"
    return None


def type_of(schema: Any, name: str) -> Any:
    """Return a column's type, or that of a field inside one; None if there is none."""
    import pyarrow as pa

    if name in schema.names:
        return schema.field(name).type
    first, *rest = name.split(".")
    if first not in schema.names:
        return None
    kind = schema.field(first).type
    for part in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = kind.field(part).type
    return kind


def names_of(schema: Any) -> list[str]:
    """Return the columns, and in the place of those with fields inside, these."""
    import pyarrow as pa

    def inside(field: Any, name: str) -> list[str]:
        if not pa.types.is_struct(field.type):
            return [name]
        return [found for part in field.type for found in inside(part, f"{name}.{part.name}")]

    return [name for field in schema for name in inside(field, field.name)]


def column_of(batch: Any, name: str) -> Any:
    """Return a column, or a field inside one."""
    import pyarrow.compute as pc

    if name in batch.schema.names:
        return batch.column(name)
    first, *rest = name.split(".")
    return pc.struct_field(batch.column(first), rest)


def as_bytes(column: Any) -> list[bytes | None]:
    """Return a column's values. A damaged Arrow file may hold lengths and places that do not exist;
    unless they are looked for, reading them reads what is not the file's. Raises ArrowInvalid."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column.validate(full=True)
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        column = column.view(pa.binary())  # invalid UTF-8 is the caller's to judge
    elif pa.types.is_large_string(column.type):
        column = column.view(pa.large_binary())
    column.validate(full=True)
    return pc.cast(column, pa.large_binary()).to_pylist()


def _is_stringlike(types: Any, kind: Any) -> bool:
    names = ("string", "large_string", "binary", "large_binary", "string_view", "binary_view")
    if types.is_null(kind):  # of a file in which no row has a text
        return True
    return any(getattr(types, f"is_{name}")(kind) for name in names)


def mds_records(piece: Piece, reading: Reading) -> Iterator[Record]:
    """Yield a record for each sample of an MDS shard."""
    number = 0
    try:
        data = read_bytes(piece.file.path)
        if piece.file.compression:
            data = decompress(piece.file.compression, data)
        for number, sample in enumerate(_mds_samples(data, piece.file.columns), start=1):
            yield _sample(number, sample, reading)
    except (FileNotFoundError, PermissionError) as error:
        yield Record(0, reason=UNREADABLE_FILE, detail=error.strerror or str(error))
    except (OSError, ValueError, IndexError) as error:
        detail = f"{str(error)[:200]}; lost from sample {number + 1} on"
        yield Record(0, reason=BROKEN_FILE, detail=detail)


def _sample(number: int, sample: dict[str, tuple[str, bytes]], reading: Reading) -> Record:
    values: list[bytes | None] = []
    for name in reading.text_fields:
        if name not in sample:
            detail = f"no column {name!r} among: {', '.join(sample)}"
            return Record(number, reason="missing_field", detail=detail)
        encoding, value = sample[name]
        if encoding == "json":
            found = json.loads(value)
            if found is None:
                values.append(None)
                continue
            if not isinstance(found, str):
                detail = f"{name!r} holds a {type(found).__name__}"
                return Record(number, reason="non_string_field", detail=detail)
            value = found.encode("utf-8", "surrogatepass")
        elif encoding not in ("str", "bytes"):
            detail = f"{name!r} holds {encoding}"
            return Record(number, reason="non_string_field", detail=detail)
        values.append(value)
    return _row(number, tuple(values), reading)


def _mds_samples(
    data: bytes, columns: tuple[tuple[str, str], ...]
) -> Iterator[dict[str, tuple[str, bytes]]]:
    """Yield {column: (encoding, bytes)} of every sample of a shard: a count, offsets, and samples
    that begin with the sizes of those columns whose size varies."""
    count = int(np.frombuffer(data, np.uint32, 1)[0])
    offsets = np.frombuffer(data, np.uint32, count + 1, 4).tolist()
    fixed = [encoding.partition("=")[2] for _, encoding in columns]
    variable = fixed.count("")
    for begin, end in pairwise(offsets):
        if not begin <= end <= len(data):
            raise ValueError("the shard is cut short")
        sizes = iter(np.frombuffer(data, np.uint32, variable, begin).tolist())
        position = begin + 4 * variable
        sample = {}
        for (name, encoding), size in zip(columns, fixed, strict=True):
            length = int(size) if size else next(sizes)
            sample[name] = (encoding.partition("=")[0], data[position : position + length])
            position += length
        if position != end:
            raise ValueError("a sample's columns do not add up to its size")
        yield sample
