"""Random access to the documents of one MDS folder.

In: a folder (local or remote) with index.json, as `data_prep/write_mds.py` or Streaming's MDSWriter
leaves it. Out: token ids by (shard, document). Every shard is checked against its recorded size and
hash when it is first opened; compressed and remote ones are unpacked into the cache under a
temporary name and renamed, so that a killed process never leaves half a shard behind.
`data/lanes.py` is the caller.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restomod.config import StreamConfig
from restomod.errors import UserError

TOKEN_COLUMNS = ("tokens", "input_ids")
TOKEN_DTYPES = ("uint16", "uint32", "int32", "int64")
OPEN_SHARDS = 256
"""Mapped shards kept open by one data set in one process."""


@dataclass
class DatasetAttributes:
    """What `restomod.json` beside an index says of the data set."""

    tokens: int
    """Tokens of all documents, special tokens not counted."""
    tokenizer: str
    """Fingerprint of the tokenizer; empty when not recorded."""
    exact: bool
    """Whether `tokens` was counted, rather than estimated from the shards' sizes."""


class ShardedDataset:
    """The documents of one MDS folder.

    Raises UserError when the folder, its index, a column that holds tokens, or a shard is missing
    or damaged; the message names the file and the stream.
    """

    def __init__(self, name: str, config: StreamConfig, cache_dir: str | Path) -> None:
        self.name = name
        self.path = config.path
        self.domain = config.domain or name
        self._cache_root = Path(cache_dir) / "shards"
        index_bytes = self._read_index()
        self.fingerprint = hashlib.sha256(index_bytes).hexdigest()
        try:
            self._shards: list[dict[str, Any]] = json.loads(index_bytes)["shards"]
            self.shard_documents = np.array([s["samples"] for s in self._shards], np.int64)
            self.documents = int(self.shard_documents.sum())
            self._column = _TokenColumn(self._shards[0]) if self._shards else None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._label('index.json')}: is not an MDS index: {error}") from error
        if self.documents == 0 or self._column is None:
            raise UserError(f"{self._label('index.json')}: holds no documents")
        self.attributes = self._read_attributes()
        self._open: OrderedDict[int, _MappedShard] = OrderedDict()
        self.opened: set[int] = set()
        """Shards that were read at least once in this process."""

    @property
    def mean_tokens(self) -> float:
        """Mean tokens of a document."""
        return self.attributes.tokens / self.documents

    def tokens(self, shard: int, document: int) -> np.ndarray:
        """Return the ids of one document as a read-only view, [length] of the stored type."""
        mapped = self._open.get(shard)
        if mapped is None:
            mapped = self._open[shard] = self._map(shard)
            self.opened.add(shard)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(shard)
        return mapped.tokens(document)

    def token_counts(self, vocab_size: int, limit: int = 10_000_000) -> np.ndarray:
        """Return how often each id occurs, [vocab_size] int64: from token_counts.npy where the data
        set has it, else counted over documents from its start up to `limit` tokens."""
        recorded = Path(self.path) / "token_counts.npy"
        counts = np.zeros(vocab_size, np.int64)
        if recorded.is_file():
            stored = np.load(recorded)[:vocab_size]
            counts[: len(stored)] = stored
            return counts
        for shard, documents in enumerate(self.shard_documents):
            for document in range(documents):
                counts += np.bincount(self.tokens(shard, document), minlength=vocab_size)
                if counts.sum() >= limit:
                    return counts
        return counts

    def _label(self, file: str) -> str:
        return f"{self.path.rstrip('/')}/{file} (stream {self.name})"

    @property
    def _remote(self) -> bool:
        return "://" in self.path

    def _read_index(self) -> bytes:
        if not self._remote:
            folder = Path(self.path)
            if not folder.is_dir():
                raise UserError(f"{self.path} (stream {self.name}): no such data folder")
            if not (folder / "index.json").is_file():
                raise UserError(
                    f"{self._label('index.json')}: is missing, so the folder is no MDS data set; "
                    "data_prep/write_mds.py makes one"
                )
            return (folder / "index.json").read_bytes()
        folder = self._cache_root / hashlib.sha256(self.path.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return self._download("index.json", folder)

    def _download(self, file: str, folder: Path) -> bytes:
        """Fetch one file of a remote data set through Streaming and return its content."""
        from streaming.base.storage import CloudDownloader

        temporary = folder / f"{file}.{os.getpid()}.download"
        try:
            downloader = CloudDownloader.get(self.path)
            downloader.download(f"{self.path.rstrip('/')}/{file}", str(temporary), timeout=120)
            return temporary.read_bytes()
        except Exception as error:
            raise UserError(f"{self._label(file)}: cannot be downloaded: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def _read_attributes(self) -> DatasetAttributes:
        recorded = Path(self.path) / "restomod.json"
        if not self._remote and recorded.is_file():
            try:
                attributes = json.loads(recorded.read_bytes())
                if attributes["special_tokens"]:
                    raise UserError(
                        f"{recorded}: the data set stores special tokens, which the loader adds "
                        "itself; prepare it without"
                    )
                return DatasetAttributes(
                    int(attributes["tokens"]), str(attributes["tokenizer_fingerprint"]), True
                )
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{recorded}: cannot be read: {error!r}") from error
        assert self._column is not None
        stored = sum(int(s["raw_data"]["bytes"]) for s in self._shards)
        return DatasetAttributes(self._column.estimate_tokens(stored, self.documents), "", False)

    def _map(self, shard: int) -> _MappedShard:
        assert self._column is not None
        entry = self._shards[shard]
        raw = entry["raw_data"]
        if not self._remote and not entry.get("zip_data"):
            path = Path(self.path) / raw["basename"]
            if not path.is_file():
                raise UserError(f"{self._label(raw['basename'])}: the shard is missing")
            self._check(path.read_bytes, raw)
        else:
            path = self._cache_root / self.fingerprint[:16] / raw["basename"]
            try:
                self._check(path.read_bytes, raw)
            except (FileNotFoundError, UserError):
                self._unpack(entry, path)
        return _MappedShard(path, self._column, self._label(raw["basename"]))

    def _unpack(self, entry: dict[str, Any], path: Path) -> None:
        """Write the raw form of a compressed or remote shard to `path`, checked on both sides."""
        packed = entry.get("zip_data") or entry["raw_data"]
        if self._remote:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = self._download(packed["basename"], path.parent)
        else:
            source = Path(self.path) / packed["basename"]
            if not source.is_file():
                raise UserError(f"{self._label(packed['basename'])}: the shard is missing")
            content = source.read_bytes()
        self._check(lambda: content, packed)
        if entry.get("zip_data"):
            content = _decompress(entry["compression"], content)
            self._check(lambda: content, entry["raw_data"])
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(content)
        os.replace(temporary, path)

    def _check(self, read: Callable[[], bytes], info: dict[str, Any]) -> None:
        """Compare content with its recorded size and, where one is recorded, its hash."""
        content = read()
        label = self._label(info["basename"])
        if len(content) != info["bytes"]:
            raise UserError(
                f"{label}: the shard is damaged: {len(content)} bytes, {info['bytes']} are recorded"
            )
        for algorithm, expected in (info.get("hashes") or {}).items():
            actual = _digest(algorithm, content)
            if actual != expected:
                raise UserError(
                    f"{label}: the shard is damaged: its {algorithm} is {actual}, not {expected}"
                )
            return


class _TokenColumn:
    """Where the token ids lie inside a sample, and in what type."""

    def __init__(self, entry: dict[str, Any]) -> None:
        names, encodings = entry["column_names"], entry["column_encodings"]
        name = next((n for n in TOKEN_COLUMNS if n in names), None)
        if name is None:
            raise ValueError(f"none of its columns {names} is called {' or '.join(TOKEN_COLUMNS)}")
        self.number = names.index(name)
        self.sizes: list[int | None] = entry["column_sizes"]
        kind, _, dtype = encodings[self.number].partition(":")
        dtype, _, shape = dtype.partition(":")
        if kind != "ndarray" or dtype not in TOKEN_DTYPES:
            raise ValueError(
                f"column {name} is {encodings[self.number]}, not an ndarray of "
                f"{', '.join(TOKEN_DTYPES)}"
            )
        self.dtype = np.dtype(dtype)
        self.fixed_shape = bool(shape)
        self.variable = sum(size is None for size in self.sizes)

    def read(self, data: np.ndarray, begin: int, end: int) -> np.ndarray:
        """Return the ids of the sample stored in data[begin:end]."""
        start = begin + 4 * self.variable
        if self.variable == 1 and len(self.sizes) == 1:
            stop = end
        else:
            lengths = iter(data[begin:start].view(np.uint32).tolist())
            sizes = [size if size is not None else next(lengths) for size in self.sizes]
            start += sum(sizes[: self.number])
            stop = start + sizes[self.number]
        if not self.fixed_shape:
            header = int(data[start])
            start += 1 + (header >> 2 << (header & 3))
        return data[start:stop].view(self.dtype)

    def estimate_tokens(self, stored_bytes: int, documents: int) -> int:
        """Return about how many tokens shards of this size hold, their headers taken off."""
        overhead = 4 + 4 * self.variable + (0 if self.fixed_shape else 3)
        return max(1, (stored_bytes - documents * overhead) // self.dtype.itemsize)


class _MappedShard:
    """A raw shard file mapped into memory."""

    def __init__(self, path: Path, column: _TokenColumn, label: str) -> None:
        self._data = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        self._column = column
        try:
            documents = int(self._data[:4].view(np.uint32)[0])
            self._offsets = self._data[4 : 8 + 4 * documents].view(np.uint32).tolist()
        except (ValueError, IndexError) as error:
            raise UserError(f"{label}: the shard is damaged: its header is cut short") from error

    def tokens(self, document: int) -> np.ndarray:
        return self._column.read(self._data, self._offsets[document], self._offsets[document + 1])


def _digest(algorithm: str, content: bytes) -> str:
    if algorithm.startswith("xxh"):
        import xxhash

        return getattr(xxhash, algorithm)(content).hexdigest()
    return hashlib.new(algorithm, content).hexdigest()


def _decompress(compression: str, content: bytes) -> bytes:
    if compression.startswith("zstd"):
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(content)
    from streaming.base.compression import decompress

    return decompress(compression, content)
