"""Documents out of files: JSON lines, Parquet and plain text, compressed or not, one by one.

`read_documents` is what the other scripts read with; what it drops or alters is counted by reason
in a `Tally`, and the first cases are kept as messages that name file and line. As a script, it
reads files and prints the tally, to try a corpus out before hours of work are spent on it:

    python data_prep/readers.py corpus/*.jsonl.zst --text-field content

One record is a line of JSON (.jsonl, .json), a row of Parquet (.parquet) or a whole file (.txt,
.md); all but Parquet may end in .gz or .zst too. Folders are read recursively in the order of
their paths. `read = kept + dropped` holds for every Tally. A document keeps its NUL characters and
its line ends; lone surrogates and bytes that are not UTF-8 become U+FFFD.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import stage

from restomod.errors import UserError

LINE_SUFFIXES = (".jsonl", ".json")
TEXT_SUFFIXES = (".txt", ".md")
COMPRESSIONS = (".gz", ".zst")
BLOCK_BYTES = 1 << 20
PROBLEMS_KEPT = 100


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


def kind_of(path: Path) -> tuple[str, str] | None:
    """Return (kind, compression) of a file by its name, None if it is of no kind we read."""
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    suffix = Path(path.stem).suffix.lower() if compression else path.suffix.lower()
    if suffix in LINE_SUFFIXES:
        return "lines", compression
    if suffix in TEXT_SUFFIXES:
        return "text", compression
    if suffix == ".parquet" and not compression:
        return "parquet", ""
    return None


def find_files(paths: Sequence[str | Path], tally: Tally | None = None) -> list[Path]:
    """Return the files that `paths` stand for: files as given, folders recursively and sorted.

    Files of a folder that are not read are counted in `tally.skipped_files`: other kinds, hidden
    ones, manifests, folders behind links. Raises UserError for a missing path, a named file of
    another kind, and a folder with nothing to read.
    """
    tally = Tally() if tally is None else tally
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = _walk(path, tally)
            if not found:
                raise UserError(f"{path}: the folder holds no file to read; {_kinds()}")
            files.extend(found)
        elif not path.exists():
            raise UserError(f"{path}: no such file or folder")
        elif kind_of(path) is None:
            raise UserError(f"{path}: cannot tell how to read it; {_kinds()}")
        else:
            files.append(path)
    if not files:
        raise UserError("no input was given")
    return files


def _kinds() -> str:
    return (
        "files end in .jsonl, .json (one object a line), .txt or .md, also with .gz or .zst, "
        "or in .parquet"
    )


def _walk(folder: Path, tally: Tally) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder):
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):
                tally.skipped_files["linked folder"] += 1
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") or name == stage.MANIFEST:
                tally.skipped_files[stage.MANIFEST if name == stage.MANIFEST else "hidden"] += 1
            elif kind_of(path) is None:
                tally.skipped_files[path.suffix.lower() or "no suffix"] += 1
            else:
                found.append(path)
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def read_documents(
    paths: Sequence[str | Path], text_field: str = "text", tally: Tally | None = None
) -> Iterator[tuple[str, str]]:
    """Yield (text, origin) of every document; origin is `file`, or `file:line` counted from 1.

    Memory stays at a few blocks, whatever a file's size. What is dropped or altered is counted in
    `tally`. Raises UserError for paths that `find_files` refuses and for unreadable files.
    """
    tally = Tally() if tally is None else tally
    for path in find_files(paths, tally):
        kind, compression = kind_of(path) or ("", "")
        if kind == "parquet":
            records = _parquet_records(path, text_field, tally)
        elif kind == "lines":
            records = _line_records(path, compression, text_field, tally)
        else:
            records = _file_record(path, compression, tally)
        for text, origin, decoded in records:
            document = _clean(text, origin, decoded, tally)
            if document is not None:
                yield document, origin


def _clean(text: str, origin: str, decoded: bool, tally: Tally) -> str | None:
    """Count one record, and return its text fit for a tokenizer; None if it is empty."""
    if not text or text.isspace():
        tally.drop("empty_document")
        return None
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        encoded = text.encode()
        tally.altered["lone_surrogates_replaced"] += 1
    if not decoded:
        tally.altered["undecodable_bytes_replaced"] += 1
        if len(tally.problems) < PROBLEMS_KEPT:
            tally.problems.append(f"{origin}: bytes that are not UTF-8 became U+FFFD")
    tally.read += 1
    tally.kept += 1
    tally.text_bytes += len(encoded)
    return text


def _decode(data: bytes) -> tuple[str, bool]:
    try:
        return data.decode(), True
    except UnicodeDecodeError:
        return data.decode(errors="replace"), False


def _line_records(
    path: Path, compression: str, text_field: str, tally: Tally
) -> Iterator[tuple[str, str, bool]]:
    for number, line in _lines(path, compression, tally):
        origin = f"{path}:{number}"
        if not line.strip():
            tally.drop("empty_line")
            continue
        content, decoded = _decode(line)
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            tally.drop("broken_json", f"{origin}: {str(error)[:100]}")
            continue
        if not isinstance(record, dict):
            tally.drop("not_an_object", f"{origin}: holds a {type(record).__name__}")
        elif text_field not in record:
            fields = ", ".join(list(record)[:10])
            tally.drop("missing_field", f"{origin}: no field {text_field!r} among: {fields}")
        elif not isinstance(record[text_field], str):
            kind = type(record[text_field]).__name__
            tally.drop("non_string_field", f"{origin}: {text_field!r} holds a {kind}")
        else:
            yield record[text_field], origin, decoded


def _lines(path: Path, compression: str, tally: Tally) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line); the piece of line before a file breaks off is not a line."""
    broken: list[str] = []
    number, parts = 1, [b""]
    for block in _blocks(path, compression, broken):
        *ended, rest = block.split(b"\n")
        for piece in ended:
            line = b"".join([*parts, piece])
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            number, parts = number + 1, []
        parts.append(rest)
    last = b"".join(parts)
    if broken:
        tally.drop("broken_file", f"{path}: {broken[0]}; lost from line {number} on")
    elif last:
        yield number, last.removeprefix(b"\xef\xbb\xbf") if number == 1 else last


def _file_record(path: Path, compression: str, tally: Tally) -> Iterator[tuple[str, str, bool]]:
    broken: list[str] = []
    data = b"".join(_blocks(path, compression, broken))
    if broken:
        tally.drop("broken_file", f"{path}: {broken[0]}")
        return
    text, decoded = _decode(data.removeprefix(b"\xef\xbb\xbf"))
    yield text, str(path), decoded


def _blocks(path: Path, compression: str, broken: list[str]) -> Iterator[bytes]:
    """Yield the file's content as far as it can be unpacked; say in `broken` why it ended early."""
    try:
        with path.open("rb") as file:
            if compression:
                yield from _unpacked(file, compression, broken)
            else:
                while block := file.read(BLOCK_BYTES):
                    yield block
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _unpacked(file: BinaryIO, compression: str, broken: list[str]) -> Iterator[bytes]:
    """Yield the content of every gzip member or zstd frame in `file`.

    The libraries' own file objects end silently in the middle of a zstd frame, and lose the last
    good block of a gzip file.
    """
    new_decoder: Callable[[], Any]
    errors: tuple[type[Exception], ...]
    if compression == ".gz":
        new_decoder, errors = (lambda: zlib.decompressobj(wbits=31)), (zlib.error,)
    else:
        import zstandard

        context = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        new_decoder, errors = context.decompressobj, (zstandard.ZstdError,)
    decoder = new_decoder()
    begun = False
    while data := file.read(1 << 16):
        while data:
            if not begun and compression == ".gz":
                data = data.lstrip(b"\0")  # padding between members is legal
                if not data:
                    break
            begun = True
            try:
                block = decoder.decompress(data)
            except errors as error:
                broken.append(f"damaged: {error}")
                return
            if block:
                yield block
            data = b""
            if decoder.eof:
                data, decoder, begun = decoder.unused_data, new_decoder(), False
    if begun:
        broken.append("broken off in the middle of the compressed data")


def _parquet_records(path: Path, text_field: str, tally: Tally) -> Iterator[tuple[str, str, bool]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            if text_field not in schema.names:
                fields = ", ".join(schema.names[:10])
                problem = f"{path}: no column {text_field!r} among: {fields}"
                tally.drop("missing_field", problem, rows)
                return
            kind = schema.field(text_field).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not _is_stringlike(pa, kind):
                tally.drop("non_string_field", f"{path}: {text_field!r} holds {kind}", rows)
                return
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                column = batch.column(0)
                if pa.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                for value in pc.cast(column, pa.large_binary()).to_pylist():
                    row += 1
                    origin = f"{path}:{row}"
                    if value is None:
                        tally.drop("non_string_field", f"{origin}: {text_field!r} holds null")
                        continue
                    text, decoded = _decode(value)
                    yield text, origin, decoded
    except (pa.ArrowException, OSError) as error:
        message = str(error).split("\n")[0][:200]
        tally.drop("broken_file", f"{path}: {message}; lost from row {row + 1} on")


def _is_stringlike(pa: Any, kind: Any) -> bool:
    types = pa.types
    return any(
        check(kind)
        for check in (
            types.is_string,
            types.is_large_string,
            types.is_binary,
            types.is_large_binary,
        )
    )


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


def main(argv: Sequence[str] | None = None) -> int:
    """Read the files and print the tally as JSON."""
    parser = argparse.ArgumentParser(
        prog="readers.py", description="Read files of documents and say what is in them."
    )
    parser.add_argument("input", nargs="+", help="files or folders")
    parser.add_argument("--text-field", default="text", help="field or column with the text")

    def work(arguments: argparse.Namespace) -> None:
        tally = Tally()
        documents = read_documents(arguments.input, arguments.text_field, tally)
        for _ in stage.progress(documents, unit=" documents"):
            pass
        stage.report_problems(tally.problems)
        print(json.dumps(tally.as_dict(), indent=1))
        require_documents(tally, arguments.input)

    return stage.run(work, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
