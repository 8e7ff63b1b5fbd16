"""MDS shards out of token ids, with an index, and what the loader wants to know of them.

In: the ids of documents, in order. Out: shards of whole documents in one column `tokens`
(`ndarray:uint16`, or `ndarray:uint32` above 65,536 ids), without special tokens, with their hashes;
`restomod.json` (`describe`) and `token_counts.npy`. `tokenise.py` and data_prep/write_mds.py call
this. Equal inputs give equal bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from restomod.data.tokenizer import Tokenizer

FORMAT = 1
COLUMN = "tokens"
HASHES = ("sha1", "xxh64")
COUNTED_TOGETHER = 1 << 20
"""Tokens."""


@dataclass
class TokenTally:
    """What was written."""

    counts: np.ndarray
    """[vocab_size] int64, occurrences of every id."""
    documents: int = 0
    tokens: int = 0
    longest: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    """Documents by the largest power of two that is not above their length."""

    def add(self, ids: np.ndarray) -> None:
        """Count one document, but for its ids."""
        self.documents += 1
        self.tokens += len(ids)
        self.longest = max(self.longest, len(ids))
        self.lengths[1 << (len(ids).bit_length() - 1)] += 1

    def merge(self, other: TokenTally) -> None:
        """Count what another has counted."""
        self.counts += other.counts
        self.documents += other.documents
        self.tokens += other.tokens
        self.longest = max(self.longest, other.longest)
        self.lengths += other.lengths


def write_shards(
    folder: Path,
    documents: Iterable[np.ndarray],
    tokenizer: Tokenizer,
    *,
    size_limit: int,
    compression: str,
) -> TokenTally:
    """Write the shards and index.json into the empty `folder`, and count what is in them.

    `size_limit` is in bytes before compression; a larger document has a shard of its own.
    `compression` is none, zstd or zstd:LEVEL. Documents hold a token at least.
    """
    from streaming import MDSWriter

    class Writer(MDSWriter):
        """Leaves no empty shard before a document that is larger than the limit."""

        def flush_shard(self) -> None:
            if self.new_samples:
                super().flush_shard()

    written = TokenTally(np.zeros(tokenizer.vocab_size, np.int64))
    uncounted: list[np.ndarray] = []

    def count() -> None:
        if uncounted:
            ids = np.concatenate(uncounted)
            written.counts += np.bincount(ids, minlength=tokenizer.vocab_size)
            uncounted.clear()

    writer = Writer(
        columns={COLUMN: f"ndarray:{tokenizer.dtype.name}"},
        out=str(folder),
        compression=None if compression == "none" else compression,
        hashes=list(HASHES),
        size_limit=size_limit,
    )
    waiting = 0
    try:
        for ids in documents:
            written.add(ids)
            writer.write({COLUMN: ids})
            uncounted.append(ids)
            waiting += len(ids)
            if waiting >= COUNTED_TOGETHER:
                count()
                waiting = 0
        count()
        writer.finish()
    except BaseException:
        writer.cancel_future_jobs()
        raise
    return written


def merge_indexes(folder: Path, parts: Sequence[str]) -> None:
    """Write an index.json for a folder whose shards lie in its sub-folders `parts`, in order."""
    shards = []
    for part in parts:
        index = json.loads((folder / part / "index.json").read_text(encoding="utf-8"))
        for entry in index["shards"]:
            for form in ("raw_data", "zip_data"):
                if entry.get(form):
                    entry[form]["basename"] = f"{part}/{entry[form]['basename']}"
            shards.append(entry)
    text = json.dumps({"version": 2, "shards": shards}, sort_keys=True)
    (folder / "index.json").write_text(text, encoding="utf-8")


def describe(
    written: TokenTally,
    tokenizer: Tokenizer,
    *,
    text_bytes: int,
    dropped: Mapping[str, int],
    altered: Mapping[str, int],
    sources: Sequence[str],
) -> dict[str, Any]:
    """Return the content of restomod.json; the same wherever the same data was prepared."""
    return {
        "format": FORMAT,
        "column": COLUMN,
        "dtype": tokenizer.dtype.name,
        "special_tokens": False,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "tokenizer_size": tokenizer.size,
        "vocab_size": tokenizer.vocab_size,
        "documents": written.documents,
        "tokens": written.tokens,
        "mean_tokens_per_document": written.tokens / max(written.documents, 1),
        "longest_document": written.longest,
        "length_histogram": {str(length): n for length, n in sorted(written.lengths.items())},
        "text_bytes": text_bytes,
        "dropped": dict(sorted(dropped.items())),
        "altered": dict(sorted(altered.items())),
        "sources": list(sources),
    }


def write_description(folder: Path, attributes: Mapping[str, Any], counts: np.ndarray) -> None:
    """Write restomod.json and token_counts.npy."""
    text = json.dumps(attributes, indent=1) + "\n"
    (folder / "restomod.json").write_text(text, encoding="utf-8")
    np.save(folder / "token_counts.npy", counts)
