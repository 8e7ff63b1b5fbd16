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
from pathlib import Path

import numpy as np

from restomod.config import DataConfig, StreamConfig
from restomod.data.cache import Cache, lock_shared
from restomod.data.dataset import MANIFEST, Dataset, DatasetAttributes
from restomod.data.files import DamagedShardError, ShardFiles
from restomod.data.mds import Column, RawShard, count, parse_index
from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError


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


class ShardedDataset(Dataset):
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
        super().__init__(name, config, tokenizer, settings)
        self.path = config.path
        self._open_shards = open_shards or OpenShards(self._settings.shards_open_per_rank)
        self.shards_open = self._settings.shards_open_per_rank
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
        self.column_name = self.column.name
        self.shard_documents = self.index.documents
        self.shard_bytes = self.index.raw_bytes
        self.stored_bytes = sum(x.bytes for x in self.index.packed or self.index.raw)
        self.is_text = self.column.is_text
        if self.documents == 0:
            raise UserError(f"{self._files.label('index.json')}: holds no documents")
        if self.cached:
            self.cache.remove_leftovers()
        self._describe(self._attributes())

    @property
    def cached(self) -> bool:
        """Whether shards are copied into the cache, being remote or compressed."""
        return self._files.cached

    def tokens(self, shard: int, document: int) -> np.ndarray:
        """Return the ordinary ids of one document, [length] of the stored type; a read-only view
        where they are stored."""
        content = self.stored(shard, document)
        if self.column.is_text:
            return self._encode(self._text(content, shard, document))
        if self.column.kind == "bytes" and self.column.dtype is None:
            raise UserError(f"{self.path} (stream {self.name}): bytes need a tokenizer to be read")
        return self._without_edges(content)

    def stored(self, shard: int, document: int) -> np.ndarray:
        """Return a document as it is stored: ids with what is around them, or bytes of text."""
        return self._read_from(shard, document, _OpenShard.document)

    def file(self, shard: int) -> str:
        """Return a shard's file, relative to the folder."""
        return self.index.raw[shard].file

    def place(self, shard: int, document: int) -> str:
        """Return where a document is stored, for a message."""
        return f"{self._files.label(self.file(shard))}: document {document}"

    def prefetch(self, shard: int) -> None:
        """Make a shard ready for opening; raises as opening it would."""
        self._files.prepare(shard)

    def token_counts(self, vocab_size: int, limit: int = 10_000_000) -> np.ndarray:
        """Return how often each id occurs, [vocab_size] int64: from token_counts.npy where the data
        set has it, else as every data set counts."""
        recorded = Path(self.path) / "token_counts.npy"
        if not recorded.is_file():
            return super().token_counts(vocab_size, limit)
        counts = np.zeros(vocab_size, np.int64)
        try:
            stored = np.load(recorded)[:vocab_size]
            counts[: len(stored)] = stored
        except (OSError, EOFError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"{self._files.label(recorded.name)}: is damaged: {error}; without it, tokens "
                "are counted anew"
            ) from error
        return counts

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
        label = self._files.label(self.file(shard))
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
        return self._estimated()

    def _recorded_attributes(self) -> DatasetAttributes | None:
        """Return what restomod.json beside the index says."""
        content = self._files.read_beside("restomod.json")
        if content is None:
            return None
        try:
            found = json.loads(content)
            if not count(found["tokens"]):
                raise UserError(f"{self._files.label('restomod.json')}: records no tokens")
            return DatasetAttributes(
                found["tokens"],
                MANIFEST,
                str(found["tokenizer_fingerprint"]),
                {int(low): count(n) for low, n in found.get("length_histogram", {}).items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{self._files.label('restomod.json')}: cannot be read: {error!r}"
            ) from error

    def _text(self, content: np.ndarray, shard: int, document: int) -> str:
        try:
            return content.tobytes().decode()
        except UnicodeDecodeError as error:
            raise DamagedShardError(
                f"{self.place(shard, document)} is not UTF-8: {error}"
            ) from error


class _OpenShard:
    """A raw shard mapped into memory, locked against removal while it is open.

    The mapping has a descriptor of its own, and with it the lock: one for each open shard, which is
    what `restomod doctor` counts.
    """

    def __init__(self, path: Path, column: Column, documents: int, locked: bool) -> None:
        with path.open("rb") as file:
            if locked:
                lock_shared(file.fileno())
            data = np.memmap(file, np.uint8, mode="r").view(np.ndarray)
        shard = RawShard(data, documents)
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


def _touch(path: Path) -> None:
    """Mark a file of the cache as used now; another user's cannot be."""
    with suppress(OSError):
        os.utime(path)
