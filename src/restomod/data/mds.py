"""The MDS format: an index of shards, and token ids or text inside a shard.

In: the bytes of index.json and of shards, as Streaming's MDSWriter leaves them. Out: an `Index` of
flat arrays (a data set of 40,000 shards costs some 10 MB, not the 200 MB of its parsed JSON), and a
`Column` that finds a document inside a shard. `data/shards.py` puts the two together.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

TOKEN_COLUMNS = ("tokens", "input_ids")
TEXT_COLUMNS = ("text", "content", "raw_content")
TOKEN_DTYPES = ("uint16", "uint32", "int32", "int64", "uint64", "int16")
_DTYPE_CODES = {16: "uint16", 17: "int16", 32: "uint32", 33: "int32", 64: "uint64", 65: "int64"}
"""How an ndarray without a type in the index says its type (Streaming's MDS encodings)."""
_BYTES_DTYPES = ("int64", "uint32", "uint16")
"""What a column of bytes may hold, the widest first."""


@dataclass(frozen=True)
class Stored:
    """One form of a shard, as the index records it."""

    file: str
    """Relative to the data set's folder."""
    bytes: int
    algorithm: str
    """Of the hash; empty when none is recorded."""
    digest: str


@dataclass
class Index:
    """The shards of a data set."""

    documents: np.ndarray
    """[shards] int64."""
    raw_bytes: np.ndarray
    """[shards] int64, unpacked."""
    raw: list[Stored]
    packed: list[Stored] | None
    """The compressed shards, None where they are stored raw."""
    compression: str
    names: list[str]
    """Columns, with their encodings and their sizes in bytes (None: varies)."""
    encodings: list[str]
    sizes: list[int | None]
    fingerprint: str
    """sha256 of index.json, in hexadecimal."""


def parse_index(content: bytes) -> Index:
    """Read an index.json; raises ValueError saying what in it is no MDS index."""
    try:
        shards: list[dict[str, Any]] = json.loads(content)["shards"]
        first = shards[0] if shards else None
        if first is None:
            raise ValueError("it lists no shards")
        if first.get("format", "mds") != "mds":
            raise ValueError(f"its shards are {first['format']}, not mds")
        columns = (first["column_names"], first["column_encodings"], first["column_sizes"])
        compression = first.get("compression") or ""
        for entry in shards:
            if (
                entry["column_names"],
                entry["column_encodings"],
                entry["column_sizes"],
            ) != columns or (entry.get("compression") or "") != compression:
                raise ValueError(
                    f"{entry['raw_data']['basename']} has other columns or another compression "
                    "than the first shard"
                )
            _check_emptiness(entry)
        for size in columns[2]:
            if size is not None:
                count(size)
        if not all(isinstance(word, str) for word in (*columns[0], *columns[1], compression)):
            raise ValueError("its columns, their encodings or its compression are no text")
        widths = {len(column) for column in columns}
        if widths != {len(columns[0])} or not columns[0]:
            raise ValueError("its columns, their encodings and their sizes are not as many")
        return Index(
            documents=np.array([count(entry["samples"]) for entry in shards], np.int64),
            raw_bytes=np.array([count(entry["raw_data"]["bytes"]) for entry in shards], np.int64),
            raw=[_stored(entry["raw_data"]) for entry in shards],
            packed=[_stored(entry["zip_data"]) for entry in shards] if compression else None,
            compression=compression,
            names=columns[0],
            encodings=columns[1],
            sizes=columns[2],
            fingerprint=hashlib.sha256(content).hexdigest(),
        )
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{error!r}") from error


def _check_emptiness(entry: dict[str, Any]) -> None:
    """Raise ValueError for a shard of no samples that has room for some, which nobody would read.
    Without any it holds two numbers and what its writer says of it, which the index repeats."""
    size = entry["raw_data"]["bytes"]
    if entry["samples"] == 0 and count(size) > 8 + len(json.dumps(entry)):
        raise ValueError(
            f"{entry['raw_data']['basename']} has {size:,} bytes, but 0 samples are recorded of it"
        )


def _stored(entry: dict[str, Any]) -> Stored:
    """Keep the quickest of the recorded hashes that can be computed here."""
    hashes: dict[str, str] = entry.get("hashes") or {}
    computable = {*xxhash.algorithms_available, *hashlib.algorithms_available}
    known = [n for n in hashes if n in computable and not n.startswith("shake")]  # of no one length
    algorithm = min(known, key=lambda name: not name.startswith("xxh"), default="")
    if hashes and not known:
        raise ValueError(f"no hash of {', '.join(hashes)} can be computed here")
    file = str(entry["basename"])
    if not file or file.startswith("/") or ".." in file.split("/") or "\0" in file:
        raise ValueError(f"shard {file!r} does not lie in its folder")
    return Stored(file, count(entry["bytes"]), algorithm, hashes[algorithm] if algorithm else "")


def count(value: Any) -> int:
    """Return a number out of JSON if it is a count; raises ValueError."""
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is no count")
    return value


def digest(algorithm: str, content: Any) -> str:
    """Return the hexadecimal hash of a buffer."""
    if algorithm.startswith("xxh"):
        return getattr(xxhash, algorithm)(content).hexdigest()
    return hashlib.new(algorithm, content).hexdigest()


def decompress(compression: str, content: bytes) -> bytes:
    """Return the raw form of a compressed shard; raises ValueError for damaged content."""
    if compression.partition(":")[0] == "zstd":
        import zstandard

        try:
            return zstandard.ZstdDecompressor().decompressobj().decompress(content)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    from streaming.base.compression import decompress as streaming_decompress

    try:
        return streaming_decompress(compression, content)
    except Exception as error:  # every library has errors of its own
        raise ValueError(f"{type(error).__name__}: {error}") from error


class Column:
    """The column that holds a document: token ids, or text.

    Raises ValueError where no column can be one.
    """

    def __init__(self, index: Index, wanted: str) -> None:
        self.name, self.number = _choose(index, wanted)
        self._sizes = index.sizes
        self._variable = sum(size is None for size in index.sizes)
        self.kind, _, rest = index.encodings[self.number].partition(":")
        dtype, _, shape = rest.partition(":")
        self.dtype = np.dtype(dtype) if self.kind == "ndarray" and dtype else None
        """Of the ids. That of bytes is found by `guess_dtype`, and set by whoever finds it; None
        for text, and where every document says it itself."""
        self._dtype_stored = self.kind == "ndarray" and not dtype
        self._has_shape = self.kind == "ndarray" and not shape

    @property
    def is_text(self) -> bool:
        return self.kind == "str"

    def document(self, data: np.ndarray, begin: int, end: int) -> np.ndarray:
        """Return one document of the sample data[begin:end]: ids as a read-only view of their type;
        of text, and of ids whose type is not known, the bytes."""
        content, dtype = self._content(data, begin, end)
        return content if dtype is None else content.view(dtype)

    def guess_dtype(self, samples: list[np.ndarray], vocab_size: int) -> np.dtype[Any]:
        """Return the type of ids in a column of bytes: the widest in which all `samples` (uint8)
        are whole and below `vocab_size`. Raises ValueError if none is."""
        for name in _BYTES_DTYPES:
            width = np.dtype(name).itemsize
            if all(
                len(content) % width == 0
                and (len(content) == 0 or int(content.view(name).min()) >= 0)
                and (len(content) == 0 or int(content.view(name).max()) < vocab_size)
                for content in samples
            ):
                return np.dtype(name)
        raise ValueError(
            f"column {self.name} is bytes, but they are no ids below {vocab_size} in any of "
            f"{', '.join(_BYTES_DTYPES)}"
        )

    def raw(self, data: np.ndarray, begin: int, end: int) -> np.ndarray:
        """Return the column's bytes of a sample, [n] uint8."""
        return self._content(data, begin, end)[0]

    def stored_tokens(self, raw_bytes: int, documents: int) -> int:
        """Return about how many ids shards of `raw_bytes` hold, what MDS adds taken off."""
        assert self.dtype is not None
        fixed = sum(size for n, size in enumerate(self._sizes) if size and n != self.number)
        header = 4 + 4 * self._variable + fixed
        if self._has_shape:  # dimensions in one byte, then the length, in two bytes from 256 on
            mean = (raw_bytes / documents - header - 2) / self.dtype.itemsize
            header += 2 if mean < 256 else 3
        return max(1, (raw_bytes - documents * header) // self.dtype.itemsize)

    def _content(self, data: np.ndarray, begin: int, end: int) -> tuple[np.ndarray, Any]:
        start = begin + 4 * self._variable
        if len(self._sizes) == 1:
            stop = end
        else:
            lengths = iter(data[begin:start].view(np.uint32).tolist())
            sizes = [size if size is not None else next(lengths) for size in self._sizes]
            start += sum(sizes[: self.number])
            stop = start + sizes[self.number]
        dtype = self.dtype
        if self._dtype_stored:
            dtype = np.dtype(_DTYPE_CODES[int(data[start])])
            start += 1
        if self._has_shape:
            header = int(data[start])
            start += 1 + (header >> 2 << (header & 3))
        return data[start:stop], dtype


def _choose(index: Index, wanted: str) -> tuple[str, int]:
    """Return name and number of the column to read."""

    def holds_ids(number: int) -> bool:
        kind, _, rest = index.encodings[number].partition(":")
        dtype = rest.partition(":")[0]
        return kind == "bytes" or (kind == "ndarray" and (not dtype or dtype in TOKEN_DTYPES))

    described = ", ".join(f"{n} ({e})" for n, e in zip(index.names, index.encodings, strict=True))
    if wanted:
        if wanted not in index.names:
            raise ValueError(f"there is no column {wanted}; there is {described}")
        number = index.names.index(wanted)
        if index.encodings[number] != "str" and not holds_ids(number):
            raise ValueError(f"column {wanted} holds neither token ids nor text: {described}")
        return wanted, number
    for name in TOKEN_COLUMNS:
        if name in index.names and holds_ids(index.names.index(name)):
            return name, index.names.index(name)
    texts = [n for n, encoding in enumerate(index.encodings) if encoding == "str"]
    named = [n for n in texts if index.names[n] in TEXT_COLUMNS] or texts
    if len(named) == 1 or (named and index.names[named[0]] in TEXT_COLUMNS):
        return index.names[named[0]], named[0]
    raise ValueError(
        f"no column can be told to hold token ids ({' or '.join(TOKEN_COLUMNS)}) or text; "
        f"there is {described}; name one with `column`"
    )


class RawShard:
    """A raw shard's bytes with the bounds of its samples.

    Raises ValueError where they do not fit each other.
    """

    def __init__(self, data: np.ndarray, documents: int) -> None:
        self.data = data
        header = data[:4]
        if len(header) < 4 or int(header.view(np.uint32)[0]) != documents:
            raise ValueError("its header does not name the number of samples in the index")
        self.offsets = data[4 : 8 + 4 * documents].view(np.uint32)
        """[documents + 1] uint32, where samples begin and end."""
        if len(self.offsets) != documents + 1 or int(self.offsets[-1]) > len(data):
            raise ValueError("it ends before its last sample")
        if int(self.offsets[0]) < 8 + 4 * documents or (self.offsets[1:] < self.offsets[:-1]).any():
            raise ValueError("its samples' bounds are out of order")
