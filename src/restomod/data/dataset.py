"""What every stream's documents have in common, wherever they are stored.

In: documents by (shard, document), of a subclass: `shards.py` reads MDS folders, `own.py` what a
user brings. Out: ordinary token ids, and what is known of all documents together. `data/lanes.py`
is the caller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from restomod.config import DataConfig, StreamConfig
from restomod.data.files import DamagedShardError
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


class Dataset(ABC):
    """The documents of one stream. A subclass sets the attributes below before it calls
    `_describe`."""

    path: str
    """Where the documents are, for messages."""
    fingerprint: str
    """Another one where the documents, or their order, are others."""
    shard_documents: np.ndarray
    """Documents of each shard, [shards] int64."""
    shard_bytes: np.ndarray
    """Unpacked bytes of each shard, [shards] int64; zeros where that is not known."""
    stored_bytes = 0
    """Bytes of all shards as they are stored, or 0."""
    is_text = True
    """Whether documents are tokenised when they are read."""
    column_name = ""
    """Column of a folder's shards that is read."""
    shards_open = 0
    """Most shards that a process keeps open."""

    def __init__(
        self,
        name: str,
        config: StreamConfig,
        tokenizer: Tokenizer | None,
        settings: DataConfig | None,
    ) -> None:
        self.name = name
        self.domain = config.domain or name
        self.max_epochs = config.max_epochs
        self.transform = config.transform
        """What every text goes through, as the recipe names it."""
        self.opened: set[int] = set()
        """Shards that were read at least once in this process."""
        self._tokenizer = tokenizer
        self._settings = settings or DataConfig()
        self._edges: set[int] = set()
        if tokenizer:
            self._edges = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}

    @abstractmethod
    def tokens(self, shard: int, document: int) -> np.ndarray:
        """Return the ordinary ids of one document, [length]; raises DamagedShardError."""

    @abstractmethod
    def file(self, shard: int) -> str:
        """Return the name of a shard."""

    @abstractmethod
    def place(self, shard: int, document: int) -> str:
        """Return where a document is stored, for a message."""

    @abstractmethod
    def prefetch(self, shard: int) -> None:
        """Make a shard ready for reading; raises as reading it would."""

    @property
    def cached(self) -> bool:
        """Whether shards are copied into the cache."""
        return False

    @cached_property
    def documents(self) -> int:
        """Documents of all shards."""
        return int(self.shard_documents.sum())

    @property
    def mean_tokens(self) -> float:
        """Mean ordinary tokens of a document; those that are too short count as empty."""
        return self.attributes.tokens / self.documents

    def token_counts(self, vocab_size: int, limit: int = 10_000_000) -> np.ndarray:
        """Return how often each id occurs, [vocab_size] int64: counted over documents from the
        first up to `limit` tokens, without damaged shards where these are to be skipped."""
        counts = np.zeros(vocab_size, np.int64)
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

    def _describe(self, attributes: DatasetAttributes) -> None:
        """Keep what is known of the documents as a whole."""
        self.attributes = attributes
        if self._tokenizer and self._settings.skip_shorter_than > 1:
            self.attributes = self._without_short(attributes)

    def _estimated(self) -> DatasetAttributes:
        """Return attributes from a sample of documents."""
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

    def _without_edges(self, tokens: np.ndarray) -> np.ndarray:
        """Take off what was stored around a document. No text encodes to a special token."""
        begin, end = 0, len(tokens)
        edges = self._edges
        while begin < end and int(tokens[end - 1]) in edges:
            end -= 1
        while begin < end and int(tokens[begin]) in edges:
            begin += 1
        return tokens[begin:end]

    def _encode(self, text: str) -> np.ndarray:
        if self._tokenizer is None:
            raise UserError(f"{self.path} (stream {self.name}): text needs a tokenizer to be read")
        if self.transform:
            text = str(shared(self.transform)(text))
        return self._tokenizer.encode_batch([text])[0]


def _spread(count: int, chosen: int) -> np.ndarray:
    """Return at most `chosen` numbers below `count`, evenly spread, the first and last included."""
    return np.unique(np.linspace(0, count - 1, chosen).astype(np.int64))
