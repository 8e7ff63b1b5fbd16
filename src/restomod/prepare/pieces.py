"""Units of work: input files cut and grouped so that each costs about the same to read.

In: the files of every source and the size of a unit. Out: `Unit`s, numbered in the order of the
recipe's sources and of their files. They depend on the input and the recipe alone, never on who
does the work, and everything later counts in them: so the output does not depend on that either.
Large JSON lines and lined text files are cut at line ends and Parquet files between row groups;
small files are put together. Compressed files cannot be cut, nor can Arrow streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from restomod.prepare.files import InputFile, open_file


@dataclass(frozen=True)
class Piece:
    """A file, or a part of one."""

    file: InputFile
    begin: int = 0
    """Where it begins: in bytes, or in row groups of a Parquet file."""
    end: int = 0
    """Where it ends; 0 is the file's end."""


@dataclass(frozen=True)
class Unit:
    """What one task reads."""

    number: int
    """Counted over all sources."""
    source: str
    pieces: tuple[Piece, ...]


def plan_units(
    files: Mapping[str, Sequence[InputFile]], lined: Mapping[str, bool], unit_bytes: int
) -> list[Unit]:
    """Return the units of all sources in order; `lined` says whose text files are lines."""
    units: list[Unit] = []
    for source, of_source in files.items():
        group: list[Piece] = []
        size = 0
        for file in of_source:
            for piece, piece_bytes in _cut(file, lined[source], unit_bytes):
                if group and size + piece_bytes > unit_bytes:
                    units.append(Unit(len(units), source, tuple(group)))
                    group, size = [], 0
                group.append(piece)
                size += piece_bytes
        if group:
            units.append(Unit(len(units), source, tuple(group)))
    return units


def _cut(file: InputFile, lined: bool, unit_bytes: int) -> Iterator[tuple[Piece, int]]:
    """Yield (piece, bytes) of a file."""
    if file.size <= unit_bytes or file.compression:
        yield Piece(file), file.size
    elif file.kind == "lines" or (file.kind == "text" and lined):
        count = -(-file.size // unit_bytes)
        edges = [file.size * n // count for n in range(count + 1)]
        for begin, end in pairwise(edges):
            yield Piece(file, begin, end), end - begin
    elif file.kind == "parquet":
        yield from _cut_parquet(file, unit_bytes)
    else:
        yield Piece(file), file.size


def _cut_parquet(file: InputFile, unit_bytes: int) -> Iterator[tuple[Piece, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_file(file.path) as opened, pq.ParquetFile(opened) as parquet:
            metadata = parquet.metadata
            sizes = [metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError):  # whoever reads it reports it
        yield Piece(file), file.size
        return
    begin, size = 0, 0
    for n, group_bytes in enumerate(sizes):
        if n > begin and size + group_bytes > unit_bytes:
            yield Piece(file, begin, n), size
            begin, size = n, 0
        size += group_bytes
    yield Piece(file, begin, len(sizes)), size
