"""Random access to the documents of one MDS folder.

In: a folder (local or remote) with index.json, as `data_prep/write_mds.py` or Streaming's MDSWriter
leaves it. Out: ordinary token ids by (shard, document); what a data set stores around its documents
([CLS], [SEP], [PAD]) is taken off, text is tokenised. Every shard is checked against its recorded
size and hash when a process first opens it; compressed and remote ones go through the cache
(`data/cache.py`), and a copy that proves damaged there is made anew. `data/lanes.py` is the caller.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restomod.config import DataConfig, StreamConfig
from restomod.data.cache import Cache, lock_shared, retried
from restomod.data.mds import Column, RawShard, Stored, decompress, digest, parse_index
from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError

SAMPLED_SHARDS = 4
SAMPLED_DOCUMENTS = 64
"""Documents of each sampled shard."""


MANIFEST = "its manifest"


@dataclass(frozen=True)
class DatasetAttributes:
    """What is known of a data set as a whole."""

    tokens: int
    """Ordinary tokens of all documents."""
    source: str
    """Where `tokens` is from, in words."""
    tokenizer: str = ""
    """Fingerprint of the tokenizer; empty when not recorded."""

    @property
    def exact(self) -> bool:
        """Whether the tokens were counted, rather than estimated."""
        return self.source == MANIFEST


class DamagedShardError(UserError):
    """A shard that is missing or damaged, and stayed so."""


class _ArrivedDamaged(Exception):
    """A download that is not what the index records."""


class OpenShards:
    """The shards that a process keeps open, at most `limit`, and of each data set at most its
    `shards_open`: an open shard keeps its place in the cache. The least recently used is closed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: OrderedDict[tuple[int, int], _OpenShard] = OrderedDict()

    def get(self, dataset: ShardedDataset, shard: int) -> _OpenShard:
        """Return an open shard; raises DamagedShardError."""
        key = (id(dataset), shard)
        found = self._open.get(key)
        if found is None:
            of_dataset = [entry for entry in self._open if entry[0] == key[0]]
            if len(of_dataset) >= dataset.shards_open:
                del self._open[of_dataset[0]]
            while len(self._open) >= self.limit:
                self._open.popitem(last=False)
            found = self._open[key] = dataset.open_shard(shard)
        else:
            self._open.move_to_end(key)
        return found

    def close(self) -> None:
        """Close all; arrays that were read from them stay valid."""
        self._open.clear()


class ShardedDataset:
    """The documents of one MDS folder.

    Raises UserError when the folder, its index, or a column that holds documents is missing or
    damaged, DamagedShardError when a shard is; the message names the file and the stream.
    """

    def __init__(
        self,
        name: str,
        config: StreamConfig,
        cache_dir: str | Path,
        tokenizer: Tokenizer | None = None,
        settings: DataConfig | None = None,
        open_shards: OpenShards | None = None,
    ) -> None:
        self.name = name
        self.path = config.path
        self.domain = config.domain or name
        self.max_epochs = config.max_epochs
        self._tokenizer = tokenizer
        self._settings = settings or DataConfig()
        self._open_shards = open_shards or OpenShards(self._settings.shards_open_per_rank)
        self.shards_open = self._settings.shards_open_per_rank
        """Most shards that this process keeps open."""
        self.cache = Cache(
            Path(config.local or Path(cache_dir) / "shards"),
            int(self._settings.cache_limit_gb * 1e9),
        )
        self._downloaders: dict[tuple[int, int], Any] = {}
        """By process and thread."""
        content = self._read_index()
        try:
            self.index = parse_index(content)
            self.column = Column(self.index, config.column)
        except ValueError as error:
            raise UserError(f"{self._label('index.json')}: is not an MDS index: {error}") from error
        self.fingerprint = self.index.fingerprint
        self.shard_documents = self.index.documents
        self.documents = int(self.shard_documents.sum())
        if self.documents == 0:
            raise UserError(f"{self._label('index.json')}: holds no documents")
        self._files = self.cache.root / self.fingerprint[:16]
        if self.cached:
            self.cache.remove_leftovers()
        self._verified: set[int] = set()
        self.opened: set[int] = set()
        """Shards that were read at least once in this process."""
        self._edges: set[int] = set()
        if tokenizer:
            self._edges = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}
        self.attributes = self._attributes()

    @property
    def mean_tokens(self) -> float:
        """Mean ordinary tokens of a document."""
        return self.attributes.tokens / self.documents

    @property
    def cached(self) -> bool:
        """Whether shards are copied into the cache, being remote or compressed."""
        return self._remote or self.index.packed is not None

    def tokens(self, shard: int, document: int) -> np.ndarray:
        """Return the ordinary ids of one document, [length] of the stored type; a read-only view
        where they are stored."""
        content = self.stored(shard, document)
        if self.column.is_text:
            return self._encode(content, shard, document)
        if self.column.kind == "bytes" and self.column.dtype is None:
            raise UserError(f"{self.path} (stream {self.name}): bytes need a tokenizer to be read")
        return self._without_edges(content)

    def stored(self, shard: int, document: int) -> np.ndarray:
        """Return a document as it is stored: ids with what is around them, or bytes of text."""
        return self._read_from(shard, document, _OpenShard.document)

    def place(self, shard: int, document: int) -> str:
        """Return where a document is stored, for a message."""
        return f"{self._label(self.index.raw[shard].file)}: document {document}"

    def prefetch(self, shard: int) -> None:
        """Make a shard ready for opening; raises as opening it would."""
        self._prepare(shard)

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
                tokens = self.tokens(shard, document)
                counts += np.bincount(tokens.astype(np.int64), minlength=vocab_size)[:vocab_size]
                if counts.sum() >= limit:
                    return counts
        return counts

    def sample(self) -> list[tuple[int, int]]:
        """Return (shard, document) of documents spread over the data set, some of a few shards."""
        filled = np.flatnonzero(self.shard_documents)
        shards = filled[_spread(len(filled), SAMPLED_SHARDS)]
        return [
            (int(shard), int(document))
            for shard in shards
            for document in _spread(int(self.shard_documents[shard]), SAMPLED_DOCUMENTS)
        ]

    def raw(self, shard: int, document: int) -> np.ndarray:
        """Return a document's bytes as stored, [n] uint8."""
        return self._read_from(shard, document, _OpenShard.raw)

    def _read_from(
        self, shard: int, document: int, read: Callable[[_OpenShard, int], np.ndarray]
    ) -> np.ndarray:
        opened = self._open_shards.get(self, shard)
        try:
            return read(opened, document)
        except (IndexError, KeyError, ValueError) as error:  # damage that no hash had told
            raise DamagedShardError(
                f"{self.place(shard, document)} is damaged: {error!r}"
            ) from error

    def open_shard(self, shard: int) -> _OpenShard:
        """Open a shard anew; `OpenShards` calls this."""
        self.opened.add(shard)
        label = self._label(self.index.raw[shard].file)
        while True:
            path = self._prepare(shard)
            try:
                opened = _OpenShard(
                    path, self.column, int(self.shard_documents[shard]), self.cached
                )
            except FileNotFoundError:  # removed from the cache in between
                self._verified.discard(shard)
            except ValueError as error:
                raise DamagedShardError(f"{label}: the shard is damaged: {error}") from error
            except OSError as error:  # too many open files, no permission: no fault of the shard
                raise UserError(f"{label}: cannot be opened: {error}") from error
            else:
                if self.cached:
                    _touch(path)
                return opened

    def _attributes(self) -> DatasetAttributes:
        recorded = self._recorded_attributes()
        if recorded and self.column.kind != "bytes":
            return recorded
        if self.column.kind == "bytes" and self._tokenizer:
            try:
                self.column.dtype = self.column.guess_dtype(
                    self._sampled(self.raw), self._tokenizer.vocab_size
                )
            except ValueError as error:
                raise UserError(f"{self.path} (stream {self.name}): {error}") from error
        if recorded:
            return recorded
        raw_bytes = int(self.index.raw_bytes.sum())
        alone = sum(size is None for size in self.index.sizes) == 1
        if self.column.dtype is not None and alone:
            return DatasetAttributes(
                self.column.stored_tokens(raw_bytes, self.documents), "the shards' sizes"
            )
        if self._tokenizer is None:
            return DatasetAttributes(max(1, raw_bytes // 4), "the shards' sizes, unread")
        lengths = [len(tokens) for tokens in self._sampled(self.tokens)]
        estimate = max(1, round(sum(lengths) / len(lengths) * self.documents))
        return DatasetAttributes(estimate, f"a sample of {len(lengths)} documents")

    def _sampled(self, read: Callable[[int, int], np.ndarray]) -> list[np.ndarray]:
        """Read the sample, without damaged shards where these are to be skipped."""
        found: list[np.ndarray] = []
        damaged: dict[int, DamagedShardError] = {}
        for shard, document in self.sample():
            if shard not in damaged:
                try:
                    found.append(read(shard, document))
                except DamagedShardError as error:
                    damaged[shard] = error
                    if self._settings.on_damaged_shard == "stop":
                        raise
        if not found:
            raise next(iter(damaged.values()))
        return found

    def _recorded_attributes(self) -> DatasetAttributes | None:
        """Return what restomod.json beside the index says."""
        content = self._read_beside("restomod.json")
        if content is None:
            return None
        try:
            found = json.loads(content)
            return DatasetAttributes(
                int(found["tokens"]), MANIFEST, str(found["tokenizer_fingerprint"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._label('restomod.json')}: cannot be read: {error!r}") from error

    def _without_edges(self, tokens: np.ndarray) -> np.ndarray:
        """Take off what was stored around a document. No text encodes to a special token."""
        begin, end = 0, len(tokens)
        edges = self._edges
        while begin < end and int(tokens[end - 1]) in edges:
            end -= 1
        while begin < end and int(tokens[begin]) in edges:
            begin += 1
        return tokens[begin:end]

    def _encode(self, content: np.ndarray, shard: int, document: int) -> np.ndarray:
        if self._tokenizer is None:
            raise UserError(f"{self.path} (stream {self.name}): text needs a tokenizer to be read")
        try:
            text = content.tobytes().decode()
        except UnicodeDecodeError as error:
            raise DamagedShardError(
                f"{self.place(shard, document)} is not UTF-8: {error}"
            ) from error
        return self._tokenizer.encode_batch([text])[0]

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
        try:
            return self._download("index.json", self._settings.download_attempts)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self._label('index.json')}: cannot be downloaded: {error}"
            ) from error

    def _read_beside(self, file: str) -> bytes | None:
        """Return a file beside the index, None if there is none."""
        if not self._remote:
            path = Path(self.path) / file
            return path.read_bytes() if path.is_file() else None
        found: list[bytes] = []

        def fetch() -> None:
            try:
                found.append(self._download(file, attempts=1))
            except Exception as error:
                if not _is_missing(error):
                    raise

        try:
            retried(self._settings.download_attempts, time.sleep, fetch)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self._label(file)}: cannot be downloaded: {error}") from error
        return found[0] if found else None

    def _download(self, file: str, attempts: int) -> bytes:
        """Fetch one file of a remote data set through Streaming and return its content."""
        from streaming.base.storage import CloudDownloader

        with self.cache.downloading(file) as temporary:
            # Kept, as S3's takes 0.2 s to make; connections outlive neither a fork nor a failure.
            key = os.getpid(), threading.get_ident()

            def fetch() -> None:
                downloader = self._downloaders.pop(key, None) or CloudDownloader.get(self.path)
                downloader.download(
                    f"{self.path.rstrip('/')}/{file}",
                    str(temporary),
                    timeout=self._settings.download_timeout_s,
                )
                self._downloaders[key] = downloader

            retried(attempts, time.sleep, fetch)
            return temporary.read_bytes()

    def _prepare(self, shard: int) -> Path:
        """Return the path of a raw shard whose content is as recorded, made if need be."""
        raw = self.index.raw[shard]
        path = Path(self.path) / raw.file if not self.cached else self._files / raw.file
        if shard in self._verified and path.exists():
            return path
        label = self._label(raw.file)
        try:
            if not self.cached:
                if not path.is_file():
                    raise DamagedShardError(f"{label}: the shard is missing")
                problem = _file_problem(path, raw)
                if problem:
                    raise DamagedShardError(f"{label}: the shard is damaged: {problem}")
            else:
                with self.cache.alone(path):
                    if not _is_whole(path, raw):
                        self._make(shard, path)
        except OSError as error:
            lost = error.errno == errno.EIO
            raise (DamagedShardError if lost else UserError)(
                f"{label}: cannot be read: {error}"
            ) from error
        self._verified.add(shard)
        return path

    def _make(self, shard: int, path: Path) -> None:
        """Write the raw form of a compressed or remote shard to `path`, checked on both sides."""
        index = self.index
        packed = index.packed[shard] if index.packed else index.raw[shard]
        content = self._fetch(packed)
        if index.packed:
            try:
                content = decompress(index.compression, content)
            except ValueError as error:
                raise DamagedShardError(
                    f"{self._label(packed.file)}: the shard is damaged: {error}"
                ) from error
            problem = _problem(content, index.raw[shard])
            if problem:
                raise DamagedShardError(
                    f"{self._label(packed.file)}: the shard is damaged: unpacked, {problem}"
                )
        with self.cache.making(path, len(content)) as file:
            file.write(content)

    def _fetch(self, stored: Stored) -> bytes:
        """Return a shard as it is stored, with the right hash."""
        label = self._label(stored.file)
        if not self._remote:
            source = Path(self.path) / stored.file
            if not source.is_file():
                raise DamagedShardError(f"{label}: the shard is missing")
            content = source.read_bytes()
            problem = _problem(content, stored)
            if problem:
                raise DamagedShardError(f"{label}: the shard is damaged: {problem}")
            return content
        fetched: list[bytes] = []

        def fetch() -> None:
            content = self._download(stored.file, attempts=1)
            problem = _problem(content, stored)
            if problem:
                raise _ArrivedDamaged(f"{label}: the shard arrived damaged: {problem}")
            fetched.append(content)

        try:
            retried(self._settings.download_attempts, time.sleep, fetch)
        except UserError:
            raise
        except Exception as error:
            # That a remote cannot be reached is no reason to leave its shards out.
            lost = _is_missing(error) or _is_damaged(error)
            raise (DamagedShardError if lost else UserError)(
                f"{label}: cannot be downloaded in {self._settings.download_attempts} attempts: "
                f"{error}"
            ) from error
        return fetched[0]


class _OpenShard:
    """A raw shard mapped into memory, locked against removal while it is open."""

    def __init__(self, path: Path, column: Column, documents: int, locked: bool) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        try:
            if locked:
                lock_shared(self._descriptor)
            with open(self._descriptor, "rb", closefd=False) as file:
                data = np.memmap(file, np.uint8, mode="r").view(np.ndarray)
            shard = RawShard(data, documents)
        except BaseException:
            self._close()
            raise
        if not locked:
            self._close()
        self._data, self._offsets = shard.data, shard.offsets
        self._column = column

    def document(self, number: int) -> np.ndarray:
        """Return a document's bytes or ids."""
        begin, end = self._offsets[number], self._offsets[number + 1]
        return self._column.document(self._data, int(begin), int(end))

    def raw(self, number: int) -> np.ndarray:
        """Return a document's bytes, [n] uint8."""
        begin, end = self._offsets[number], self._offsets[number + 1]
        return self._column.raw(self._data, int(begin), int(end))

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self._close()


def _is_missing(error: BaseException) -> bool:
    """Return whether a remote said that there is no such file, which each does in its own way."""
    answer: Any = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore
        return answer.get("Error", {}).get("Code") in ("404", "NoSuchKey")
    return isinstance(error, FileNotFoundError) or getattr(answer, "status_code", None) == 404


def _is_damaged(error: BaseException) -> bool:
    """Return whether a download came to its end, but is wrong: by our hash or by the remote's."""
    return isinstance(error, _ArrivedDamaged) or "Checksum" in type(error).__name__


def _is_whole(path: Path, stored: Stored) -> bool:
    """Return whether a file of the cache is there and as recorded."""
    try:
        return not _file_problem(path, stored)
    except FileNotFoundError:  # perhaps removed this instant
        return False


def _touch(path: Path) -> None:
    """Mark a file of the cache as used now; another user's cannot be."""
    with suppress(OSError):
        os.utime(path)


def _file_problem(path: Path, stored: Stored) -> str:
    """Return how a file differs from its recorded size and hash, read through a map rather than
    into memory."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != stored.bytes or not stored.bytes:
            return _problem(file.read(), stored)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _problem(content, stored)


def _problem(content: bytes | mmap.mmap, stored: Stored) -> str:
    """Return how content differs from its recorded size and hash; nothing: an empty text."""
    if len(content) != stored.bytes:
        return f"{len(content)} bytes, {stored.bytes} are recorded"
    if stored.algorithm:
        actual = digest(stored.algorithm, content)
        if actual != stored.digest:
            return f"its {stored.algorithm} is {actual}, not {stored.digest}"
    return ""


def _spread(count: int, chosen: int) -> np.ndarray:
    """Return at most `chosen` numbers below `count`, evenly spread, the first and last included."""
    return np.unique(np.linspace(0, count - 1, chosen).astype(np.int64))
