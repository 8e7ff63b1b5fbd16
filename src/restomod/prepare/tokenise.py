"""Last stages: token ids of every unit, a task each; then MDS shards, a task per group of units.

In: the documents of `documents.py` without duplicates, and the tokenizer. Out: for each source and
split a folder of shards in the job's output. A document is held out by the hash of its text. Units
are joined into groups of several shards by the tokens that they hold, so that shards are full; a
group's shards lie in a folder of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from restomod.data.tokenizer import Tokenizer, load_tokenizer
from restomod.prepare.atomic import replacing
from restomod.prepare.config import parse_size
from restomod.prepare.documents import Document, stored_documents
from restomod.prepare.duplicates import drops
from restomod.prepare.job import Job
from restomod.prepare.shards import TokenTally, merge_indexes, write_shards

TOKENISE, WRITE = "tokenise", "write"
SPLITS = ("train", "heldout")
TOKENIZER = "tokenizer"
SHARDS_PER_GROUP = 8


def is_held_out(document: Document, share: float) -> bool:
    """Return whether a document is for evaluation."""
    return document.choice < share * 2.0**64


def job_tokenizer(job: Job) -> Tokenizer:
    """Return the tokenizer in the job's output."""
    folder = job.output / TOKENIZER
    return _loaded(str(folder), max(f.stat().st_mtime_ns for f in folder.iterdir()))


@lru_cache(maxsize=1)
def _loaded(path: str, changed: int) -> Tokenizer:
    return load_tokenizer(path)


def kept_documents(job: Job, unit: int, documents: int, parts: int) -> Iterator[list[Document]]:
    """Yield a unit's documents that are no duplicates, in batches."""
    exact, near = drops(job, unit, documents, parts)
    dropped = np.concatenate([exact[:, 0], near[:, 0]])
    return stored_documents(job, unit, dropped)


def tokenise_unit(job: Job, unit: int, documents: int, parts: int, threads: int) -> dict[str, Any]:
    """Tokenise a unit's documents; return by split how many there are, of what size. `threads` are
    those of the tokenizers library."""
    if threads > 1:  # `perform` takes it back
        os.environ.update(TOKENIZERS_PARALLELISM="true", RAYON_NUM_THREADS=str(threads))
    tokenizer = job_tokenizer(job)
    share = job.recipe.heldout.share
    counted = {split: {"documents": 0, "tokens": 0, "text_bytes": 0} for split in SPLITS}
    lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
    no_tokens = no_tokens_bytes = 0
    folder = job.stage(TOKENISE) / "ids"
    with (
        replacing(_ids_file(job, "train", unit), folder) as train,
        replacing(_ids_file(job, "heldout", unit), folder) as heldout,
    ):
        with train.open("wb") as train_ids, heldout.open("wb") as heldout_ids:
            files = {"train": train_ids, "heldout": heldout_ids}
            for batch in kept_documents(job, unit, documents, parts):
                encoded = tokenizer.encode_batch([document.text for document in batch])
                for document, ids in zip(batch, encoded, strict=True):
                    size = len(document.text.encode())
                    if not len(ids):
                        no_tokens += 1
                        no_tokens_bytes += size
                        continue
                    split = SPLITS[is_held_out(document, share)]
                    files[split].write(ids.tobytes())
                    lengths[split].append(len(ids))
                    counted[split]["documents"] += 1
                    counted[split]["tokens"] += len(ids)
                    counted[split]["text_bytes"] += size
        for split in SPLITS:
            with replacing(_lengths_file(job, split, unit)) as partial, partial.open("wb") as file:
                np.save(file, np.array(lengths[split], np.int64))
    return {**counted, "no_tokens": no_tokens, "no_tokens_bytes": no_tokens_bytes}


def _ids_file(job: Job, split: str, unit: int) -> Path:
    return job.stage(TOKENISE) / split / f"{unit:06d}.ids"


def _lengths_file(job: Job, split: str, unit: int) -> Path:
    return job.stage(TOKENISE) / split / f"{unit:06d}.npy"


def plan_groups(
    units: Sequence[int], tokens: Sequence[int], itemsize: int, shard_bytes: int
) -> list[list[int]]:
    """Return units in groups of consecutive ones, each of as many tokens as fill some shards."""
    groups: list[list[int]] = []
    held = 0
    for unit, count in zip(units, tokens, strict=True):
        if not count:
            continue
        if not groups or held >= SHARDS_PER_GROUP * shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(unit)
        held += count * itemsize
    return groups


def write_group(
    job: Job, source: str, split: str, part: str, units: Sequence[int]
) -> dict[str, Any]:
    """Write the shards of a group of units; return what is in them."""
    tokenizer = job_tokenizer(job)
    target = job.output / source / split / part
    with replacing(target, job.stage(WRITE) / "partial") as folder:
        written = write_shards(
            folder,
            _stored_ids(job, split, units, tokenizer.dtype),
            tokenizer,
            size_limit=parse_size(job.recipe.shards.size, "shards.size"),
            compression=job.recipe.shards.compression,
        )
    counts = _counts_file(job, source, split, part)
    with replacing(counts) as partial, partial.open("wb") as file:
        np.save(file, written.counts)
    return {
        "documents": written.documents,
        "tokens": written.tokens,
        "longest": written.longest,
        "lengths": {str(length): n for length, n in sorted(written.lengths.items())},
    }


def _counts_file(job: Job, source: str, split: str, part: str) -> Path:
    return job.stage(WRITE) / "counts" / source / split / f"{part}.npy"


def _stored_ids(
    job: Job, split: str, units: Sequence[int], dtype: np.dtype[Any]
) -> Iterator[np.ndarray]:
    for unit in units:
        ids = np.memmap(_ids_file(job, split, unit), dtype, mode="r").view(np.ndarray)
        lengths = np.load(_lengths_file(job, split, unit))
        ends = np.cumsum(lengths)
        for begin, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True):
            yield ids[begin:end]


def join_groups(
    job: Job, source: str, split: str, results: dict[str, dict[str, Any]], vocab_size: int
) -> TokenTally:
    """Write the index over a split's groups; `results` is what `write_group` returned by part."""
    written = TokenTally(np.zeros(vocab_size, np.int64))
    for part, result in results.items():
        of_part = TokenTally(
            np.load(_counts_file(job, source, split, part)),
            result["documents"],
            result["tokens"],
            result["longest"],
        )
        of_part.lengths.update({int(length): n for length, n in result["lengths"].items()})
        written.merge(of_part)
    merge_indexes(job.output / source / split, list(results))
    return written
