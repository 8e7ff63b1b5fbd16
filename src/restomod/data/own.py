"""Documents of the user's own: a stream whose recipe names a `source` instead of a folder.

In: what the recipe names, which returns a document at a time, as text or as token ids. Out:
ordinary token ids by (shard, document), like those of a folder. docs/extend.md has an example.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from restomod.config import DataConfig, StreamConfig
from restomod.data.dataset import Dataset
from restomod.data.files import DamagedShardError
from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError
from restomod.extensions import USE, of_this_process


class OwnDataset(Dataset):
    """The documents that a class of the user's reads; every process makes one instance of it.

    Raises UserError where that cannot say how many documents there are, DamagedShardError where it
    cannot read one; the message holds what it raised.
    """

    def __init__(
        self,
        name: str,
        config: StreamConfig,
        tokenizer: Tokenizer | None = None,
        settings: DataConfig | None = None,
    ) -> None:
        super().__init__(name, config, tokenizer, settings)
        self.path = str(config.source[USE])
        self._source = config.source
        try:
            counts = np.asarray(of_this_process(self._source).shard_documents(), np.int64)
            version = str(of_this_process(self._source).fingerprint())
        except Exception as error:  # whatever a user's class raises
            raise UserError(
                f"{self.path} (stream {name}): {type(error).__name__}: {error}"
            ) from error
        if counts.ndim != 1 or counts.min(initial=0) < 0 or counts.sum() == 0:
            raise UserError(
                f"{self.path} (stream {name}): shard_documents returned {counts.tolist()!r:.60}; a "
                "list of how many documents each shard holds is wanted, of one document at least"
            )
        if not version:
            raise UserError(f"{self.path} (stream {name}): fingerprint returned nothing")
        self.shard_documents = counts
        self.shard_bytes = np.zeros_like(counts)
        identity = json.dumps([self.path, version, hashlib.sha256(counts.tobytes()).hexdigest()])
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        self._describe(self._estimated())

    def tokens(self, shard: int, document: int) -> np.ndarray:
        """Return the ordinary ids of one document, [length]."""
        self.opened.add(shard)
        source = of_this_process(self._source)
        try:
            found = source.read(shard, document)
        except Exception as error:  # whatever a user's class raises
            raise DamagedShardError(
                f"{self.place(shard, document)}: {type(error).__name__}: {error}"
            ) from error
        if isinstance(found, str):
            return self._encode(found)
        ids = np.asarray(found)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise UserError(
                f"{self.place(shard, document)}: read returned {type(found).__name__}; a text, or "
                "token ids in one dimension, are wanted"
            )
        if self.transform:
            raise UserError(f"{self.place(shard, document)}: is token ids; a transform takes text")
        return self._without_edges(ids.astype(np.int64))

    def file(self, shard: int) -> str:
        """Return the name of a shard."""
        return f"shard {shard}"

    def place(self, shard: int, document: int) -> str:
        """Return where a document is, for a message."""
        return f"{self.path} (stream {self.name}): shard {shard}: document {document}"

    def prefetch(self, shard: int) -> None:
        """Nothing: the user's class fetches what it reads."""
