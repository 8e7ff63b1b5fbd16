"""Random access to the documents of one MDS folder.

In: a folder (local or remote) with index.json, as `data_prep/write_mds.py` or Streaming's MDSWriter
leaves it. Out: ordinary token ids by (shard, document); what a data set stores around its documents
([CLS], [SEP], [PAD]) is taken off, text is tokenised. Every shard is checked against its recorded
size and hash when a process first opens it (`data/files.py`). `data/lanes.py` is the caller.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from restomod.config import DataConfig, StreamConfig
from restomod.data.cache import Cache, lock_shared
from restomod.data.files import DamagedShardError, ShardFiles
from restomod.data.mds import Column, RawShard, parse_index
from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError
from restomod.extensions import shared

SAMPLED_SHARDS = 4
SAMPLED_DOCUMENTS = 64
"""Documents of each sampled shard."""


MANIFEST = "its manifest"


@dataclass(frozen=True)
class DatasetAttributes:
    """What is known of a data set as a whole."""

    tokens: int
    """Ordinary tokens of all documents that are not too short."""
    source: str
    """Where `tokens` is from, in words."""
    tokenizer: str = ""
    """Fingerprint of the tokenizer; empty when not recorded."""
    histogram: dict[int, int] = field(default_factory=dict)
    """Documents by the largest power of two that is not above their length; empty when not
    recorded."""

    @property
    def exact(self) -> bool:
        """Whether the tokens were counted, rather than estimated."""
        return self.source == MANIFEST


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
        self.transform = config.transform
        """What every text goes through, as the recipe names it."""
        self._tokenizer = tokenizer
        self._settings = settings or DataConfig()
        self._open_shards = open_shards or OpenShards(self._settings.shards_open_per_rank)
        self.shards_open = self._settings.shards_open_per_rank
        """Most shards that this process keeps open."""
        self.cache = Cache(
            Path(config.local or Path(cache_dir) / "shards"),
            int(self._settings.cache_limit_gb * 1e9),
        )
        self._files = ShardFiles(name, config.path, self.cache, self._settings)
        content = self._files.read_index()
        try:
            self.index = self._files.index = parse_index(content)
            self.column = Column(self.index, config.column)
        except ValueError as error:
            raise UserError(
                f"{self._files.label('index.json')}: is not an MDS index: {error}"
            ) from error
        if self.transform and not self.column.is_text:
            raise UserError(
                f"{self.path} (stream {name}): column {self.column.name} holds token ids; a "
                "transform takes text"
            )
        self.fingerprint = self.index.fingerprint
        self.shard_documents = self.index.documents
        self.documents = int(self.shard_documents.sum())
        if self.documents == 0:
            raise UserError(f"{self._files.label('index.json')}: holds no documents")
        if self.cached:
            self.cache.remove_leftovers()
        self.opened: set[int] = set()
        """Shards that were read at least once in this process."""
        self._edges: set[int] = set()
        if tokenizer:
            self._edges = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}
        self.attributes = self._attributes()
        if tokenizer and self._settings.skip_shorter_than > 1:
            self.attributes = self._without_short(self.attributes)

    @property
    def mean_tokens(self) -> float:
        """Mean ordinary tokens of a document; those that are too short count as empty."""
        return self.attributes.tokens / self.documents

    @property
    def cached(self) -> bool:
        """Whether shards are copied into the cache, being remote or compressed."""
        return self._files.cached

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
        return f"{self._files.label(self.index.raw[shard].file)}: document {document}"

    def prefetch(self, shard: int) -> None:
        """Make a shard ready for opening; raises as opening it would."""
        self._files.prepare(shard)

    def token_counts(self, vocab_size: int, limit: int = 10_000_000) -> np.ndarray:
        """Return how often each id occurs, [vocab_size] int64: from token_counts.npy where the data
        set has it, else counted over documents from its start up to `limit` tokens, without damaged
        shards where these are to be skipped."""
        recorded = Path(self.path) / "token_counts.npy"
        counts = np.zeros(vocab_size, np.int64)
        if recorded.is_file():
            stored = np.load(recorded)[:vocab_size]
            counts[: len(stored)] = stored
            return counts
        total = 0
        for shard, documents in enumerate(self.shard_documents):
            try:
                for document in range(documents):
                    tokens = self.tokens(shard, document).astype(np.int64)
                    counts += np.bincount(tokens, minlength=vocab_size)[:vocab_size]
                    total += len(tokens)
                    if total >= limit:
                        return counts
            except DamagedShardError:
                if self._settings.on_damaged_shard == "stop":
                    raise
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
        label = self._files.label(self.index.raw[shard].file)
        while True:
            path = self._files.prepare(shard)
            try:
                opened = _OpenShard(
                    path, self.column, int(self.shard_documents[shard]), self.cached
                )
            except FileNotFoundError:  # removed from the cache in between
                self._files.forget(shard)
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

    def _without_short(self, found: DatasetAttributes) -> DatasetAttributes:
        """Take off the tokens of documents that `skip_shorter_than` leaves out, by a sample."""
        lengths = np.array([len(tokens) for tokens in self._sampled(self.tokens)])
        kept = lengths[lengths >= self._settings.skip_shorter_than].sum() / max(1, lengths.sum())
        return replace(
            found,
            tokens=max(1, round(found.tokens * kept)),
            source=f"{found.source}, less the short ones of {len(lengths)} sampled documents",
        )

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
        content = self._files.read_beside("restomod.json")
        if content is None:
            return None
        try:
            found = json.loads(content)
            return DatasetAttributes(
                int(found["tokens"]),
                MANIFEST,
                str(found["tokenizer_fingerprint"]),
                {int(low): int(n) for low, n in found.get("length_histogram", {}).items()},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._files.label('restomod.json')}: cannot be read: {error!r}"
            ) from error

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
        if self.transform:
            text = str(shared(self.transform)(text))
        return self._tokenizer.encode_batch([text])[0]


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


def _touch(path: Path) -> None:
    """Mark a file of the cache as used now; another user's cannot be."""
    with suppress(OSError):
        os.utime(path)


def _spread(count: int, chosen: int) -> np.ndarray:
    """Return at most `chosen` numbers below `count`, evenly spread, the first and last included."""
    return np.unique(np.linspace(0, count - 1, chosen).astype(np.int64))
