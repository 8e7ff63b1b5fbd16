"""`restomod embed`: the vectors of many texts, from files to files.

In: a model and files of texts (`inputs.py`). Out: a folder of Parquet parts (`folder.py`), each of
so many rows of the input: row number or id, columns that are kept, and the vector. A part appears
whole or not at all, so the same command goes on at the first part that is missing, and several
processes can share the parts. Memory holds a part's vectors and a window of texts, whatever the
input's size. `embed` is the same for texts in Python.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from restomod.errors import UserError
from restomod.prepare.files import real_path
from restomod.units import counted
from restomod.vectors.folder import BEGUN, COMPLETE, Output, part_name
from restomod.vectors.inputs import Columns, Reader, Rows
from restomod.vectors.texts import BATCH_TOKENS, WINDOW_TEXTS, Pooling, TextEncoder

log = logging.getLogger(__name__)

PART_ROWS = 16_384
WINDOW_CHARACTERS = 1 << 26
"""Texts that are in memory together, at most, or one longer text."""
LINE_EVERY_S = 10.0
ROW, VECTOR = "row", "vector"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Options:
    """What the vectors are; a folder holds those of one choice."""

    text_column: str = "text"
    id_column: str = ""
    """Stands beside each vector instead of the row's number."""
    keep: tuple[str, ...] = ()
    """Other columns that are copied."""
    pooling: Pooling = "mean"
    normalize: bool = False
    """Whether vectors get length 1."""
    dtype: str = "float32"
    max_tokens: int = 0
    limit: int = 0
    """Rows of the input that are embedded; 0: all."""
    part_rows: int = PART_ROWS


@dataclass(frozen=True)
class Sharing:
    """Which parts this process writes: those whose number is `mine` modulo `processes`."""

    mine: int = 0
    processes: int = 1


@dataclass
class _Window:
    """Consecutive rows of one part."""

    part: int
    rows: list[Rows] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    """Of the rows that have a text."""

    @property
    def texts(self) -> list[str | None]:
        return [text for rows in self.rows for text in rows.texts]


@dataclass
class _Part:
    """A part that is being made."""

    number: int
    tables: list[pa.Table]

    @property
    def rows(self) -> int:
        return sum(table.num_rows for table in self.tables)

    def write(self, folder: Output) -> None:
        """Write it, unless that was done."""
        if self.tables:
            table = pa.concat_tables(self.tables).combine_chunks()
            folder.write(part_name(self.number), partial(_write, table))
            self.tables = []


def embed(
    model: str | Path | TextEncoder,
    texts: Iterable[str],
    pooling: Pooling = "mean",
    *,
    normalize: bool = False,
    max_tokens: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> np.ndarray:
    """Return the vectors of texts, [texts, hidden] float32, in their order.

    `model` is a run, a checkpoint, an average, a transformers folder or a TextEncoder, which keeps
    its own limits. `max_tokens` cuts each text, [CLS] and [SEP] counted; 0 is the model's own
    limit. Raises UserError if the model cannot be loaded or has no tokenizer.
    """
    if not isinstance(model, TextEncoder):
        model = TextEncoder.load(model, max_tokens=max_tokens, batch_tokens=batch_tokens)
    vectors = model.embed(texts, pooling)
    return normalized(vectors) if normalize else vectors


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Return vectors [N, D] scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def embed_files(
    model: str,
    inputs: list[str],
    out: str,
    options: Options,
    *,
    batch_tokens: int = BATCH_TOKENS,
    sharing: Sharing = Sharing(),
) -> str:
    """Write the vectors of all rows that are not there yet; return what was done, as text.

    Raises UserError for input that cannot be read, and for a folder that was begun with another
    model, input or options, or holds something else.
    """
    columns = Columns(options.text_column, _kept(options))
    reader = Reader(inputs, columns)
    encoder = TextEncoder.load(model, max_tokens=options.max_tokens, batch_tokens=batch_tokens)
    folder = Output(out)
    _begin(folder, _fingerprint(model, encoder, reader, options))
    done = folder.names()
    schema = _schema(columns, options, encoder.hidden_size)
    meter = _Meter(reader, options, encoder.max_tokens)
    windows = _windows(reader, encoder, options, sharing, done)
    part = _Part(0, [])
    for window in _ahead(windows):
        if window.part != part.number:
            part = _Part(window.part, [])
        vectors = _vectors(encoder, window, options)
        first = part.number * options.part_rows + part.rows
        part.tables.append(_table(window, vectors, first, schema))
        meter.add(window, first + part.tables[-1].num_rows)
        if part.rows == options.part_rows:
            part.write(folder)
    part.write(folder)
    return meter.end() + _finish(folder, reader, options)


def _kept(options: Options) -> tuple[str, ...]:
    names = (*((options.id_column,) if options.id_column else ()), *options.keep)
    taken = [VECTOR] if options.id_column else [VECTOR, ROW]
    for n, name in enumerate(names):
        if name in taken or name in names[:n]:
            raise UserError(f"column {name!r}: the output would have two of that name")
    return names


def _begin(folder: Output, fingerprint: dict[str, Any]) -> None:
    """Record what the vectors are made from; raises UserError if others are there."""
    names = folder.names()
    if BEGUN not in names:
        if names:
            raise UserError(f"{folder.path}: exists and holds no vectors; choose another --out")
        folder.write_json(BEGUN, fingerprint)
        return
    there, now = _flat(folder.read_json(BEGUN)), _flat(fingerprint)
    changed = [
        f"{key}: {there.get(key)!r} there, {now.get(key)!r} now"
        for key in dict.fromkeys([*there, *now])
        if there.get(key) != now.get(key) and key != "model.path"  # the same weights elsewhere
    ]
    if not changed:
        return
    raise UserError(
        f"{folder.path}: was begun with something else:\n  "
        + "\n  ".join(changed[:5])
        + "\nchoose another --out, or delete it"
    )


def _fingerprint(
    model: str, encoder: TextEncoder, reader: Reader, options: Options
) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(asdict(encoder.model.config), sort_keys=True).encode())
    for name, weight in sorted(encoder.model.state_dict().items()):
        digest.update(name.encode() + weight.cpu().contiguous().numpy().tobytes())
    return {
        "model": {"path": real_path(model), "sha256": digest.hexdigest()},
        "tokenizer": encoder.tokenizer.fingerprint,
        "options": {**asdict(options), "keep": list(options.keep)},
        "max_tokens": encoder.max_tokens,
        "inputs": [
            {"path": real_path(file.path), "bytes": file.size, "version": file.version}
            for file in reader.files
        ],
    }


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return {prefix: content}
    parts = (_flat(v, f"{prefix}.{k}".lstrip(".")) for k, v in content.items())
    return {key: value for part in parts for key, value in part.items()}


def _windows(
    reader: Reader, encoder: TextEncoder, options: Options, sharing: Sharing, done: set[str]
) -> Iterator[_Window]:
    """Yield the rows of this process's parts that are missing, tokenised."""
    for part in itertools.count():
        count = options.part_rows
        if options.limit:
            count = min(count, options.limit - part * options.part_rows)
        before = reader.position
        if count <= 0:
            return
        if part % sharing.processes != sharing.mine or part_name(part) in done:
            reader.skip(count)
        else:
            for window in _cut(reader.take(count), part):
                texts = [text for text in window.texts if text is not None]
                window.ids = encoder.ids(texts)
                yield window
        if reader.position < before + count:
            return


def _cut(rows: Iterator[Rows], part: int) -> Iterator[_Window]:
    """Yield windows of up to so many texts and characters."""
    window, texts, characters = _Window(part), 0, 0
    for some in rows:
        size = sum(len(text or "") for text in some.texts)
        if texts and (texts >= WINDOW_TEXTS or characters + size > WINDOW_CHARACTERS):
            yield window
            window, texts, characters = _Window(part), 0, 0
        window.rows.append(some)
        texts += len(some.texts)
        characters += size
    if texts:
        yield window


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items, of which a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def _vectors(encoder: TextEncoder, window: _Window, options: Options) -> np.ndarray:
    try:
        vectors = encoder.embed_ids(window.ids, options.pooling)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory does not hold a batch of {encoder.batch_tokens} tokens; give a "
            "smaller --batch-tokens: the same command goes on"
        ) from error
    return normalized(vectors) if options.normalize else vectors


def _schema(columns: Columns, options: Options, hidden: int) -> pa.Schema:
    kinds = {"float16": pa.float16(), "float32": pa.float32()}
    fields = [pa.field(n, kind) for n, kind in zip(columns.kept, columns.types, strict=True)]
    row = [] if options.id_column else [pa.field(ROW, pa.int64())]
    return pa.schema([*row, *fields, pa.field(VECTOR, pa.list_(kinds[options.dtype], hidden))])


def _table(window: _Window, vectors: np.ndarray, first: int, schema: pa.Schema) -> pa.Table:
    """Return the rows of a window; the vector of a row without a text is null."""
    there = np.array([text is not None for text in window.texts])
    kind = schema.field(VECTOR).type
    full = np.zeros((len(there), vectors.shape[1]), kind.value_type.to_pandas_dtype())
    full[there] = vectors
    values = pa.array(full.ravel())
    arrays = [pa.FixedSizeListArray.from_arrays(values, type=kind, mask=pa.array(~there))]
    kept = zip(*(rows.kept for rows in window.rows), strict=True)
    arrays = [*(pa.chunked_array(list(column)) for column in kept), *arrays]
    if len(arrays) < len(schema):
        arrays.insert(0, pa.array(np.arange(first, first + len(there))))
    return pa.Table.from_arrays(arrays, schema=schema)


def _write(table: pa.Table, path: Path) -> None:
    others = [name for name in table.column_names if name != VECTOR]
    pq.write_table(
        table,
        path,
        compression={**dict.fromkeys(others, "zstd"), f"{VECTOR}.list.element": "none"},
        use_dictionary=others,
        write_statistics=others,
    )


def _finish(folder: Output, reader: Reader, options: Options) -> str:
    """Record that all parts are there, if they are; return where they are, as text."""
    rows = reader.position
    parts = -(-rows // options.part_rows)
    missing = {part_name(n) for n in range(parts)} - folder.names()
    if missing:
        return f"{folder.path}: {len(missing)} of {parts} parts are still missing\n"
    folder.write_json(COMPLETE, {"rows": rows, "parts": parts})
    return f"{folder.path}: complete, {counted(rows, 'row')} in {counted(parts, 'part')}\n"


class _Meter:
    """Shows how far it has come: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, reader: Reader, options: Options, max_tokens: int) -> None:
        self._reader = reader
        self._max_tokens, self._full = max_tokens, 0
        total = reader.rows
        if total and options.limit:
            total = min(total, options.limit)
        self._of = f" of {total:,}" if total else ""
        self._bar = tqdm(total=total, unit=" rows", disable=not sys.stderr.isatty())
        self._tokens = self._rows = 0
        self._began = self._line_at = time.monotonic()

    def add(self, window: _Window, position: int) -> None:
        """Count a window, with which the vectors go as far as row `position`."""
        self._rows += len(window.texts)
        self._tokens += sum(map(len, window.ids))
        self._full += sum(len(ids) >= self._max_tokens for ids in window.ids)
        self._bar.update(position - self._bar.n)
        self._bar.set_postfix_str(f"{self._speed():,.0f} tokens/s")
        if self._bar.disable and time.monotonic() > self._line_at:
            self._line_at = time.monotonic() + LINE_EVERY_S
            log.info("row %s%s, %s tokens/s", f"{position:,}", self._of, f"{self._speed():,.0f}")

    def _speed(self) -> float:
        return self._tokens / max(time.monotonic() - self._began, 1e-9)

    def end(self) -> str:
        self._bar.close()
        if not self._rows:
            return "no part was left to make\n"
        done = (
            f"embedded {counted(self._rows, 'row')}, {counted(self._tokens, 'token')}, "
            f"{self._speed():,.0f} tokens/s\n"
        )
        if self._full:
            texts = counted(self._full, "text fills", "texts fill")
            done += (
                f"{texts} the {self._max_tokens:,} tokens that are read of each; what is longer "
                "was cut\n"
            )
        lost = self._reader.without_text
        if lost:
            reasons = ", ".join(f"{reason}: {n:,}" for reason, n in lost.items())
            rows = counted(lost.total(), "row has", "rows have")
            done += f"{rows} no text ({reasons}); the vector is null\n"
        return done
