"""Datatrove's MinHash steps, driven one by one on local folders and without a word tokenizer.

In: texts, and folders that an earlier step wrote. Out: the files of datatrove's steps, which are
sorted signatures, pairs of documents, and clusters. `near_duplicates` calls this, and its config
decides the hashes. Datatrove's tokenizers of words need packages and downloads of each language's
own; here the words are those of `ngrams`, for every script. Numbers stay what they are (datatrove
would make every number 0, and every table of numbers a duplicate of every other).
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from restomod.errors import UserError
from restomod.prepare.ngrams import ngrams_of_length, word_hashes, words

if TYPE_CHECKING:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

PAIRS = "{:05d}_00.dups"
"""File of the pairs of a bucket: (unit, index, unit, index) in four little-endian uint32 each."""
CLUSTERS = "{:06d}.clusters"
"""File of the clustered documents of a unit: (index, cluster) in two little-endian uint32 each."""
SHINGLES_AT_ONCE = 2048
"""Bounds the [shingles, hashes] array of a long document, and keeps it in the processor's cache."""
DOCUMENTS_PER_UNIT = 1 << 32
"""Datatrove numbers the documents of a unit with 32 bits."""

SPARE_FILES = 64
"""Files that libraries may open meanwhile."""


@dataclass
class NearDuplicateConfig:
    """When two documents count as the same. With similarity s (Jaccard, of their sets of n-grams)
    they are found with probability 1 - (1 - s^hashes_per_bucket)^buckets (Leskovec, Rajaraman,
    Ullman: Mining of Massive Datasets, 3.4): at the defaults 0.56 for s = 0.7, 0.92 for 0.8."""

    enabled: bool = True
    """Whether near duplicates are looked for and dropped."""
    ngram: int = 5
    """Words of an n-gram. Documents with fewer words are never near duplicates."""
    buckets: int = 14
    """Groups of hashes; documents that agree in a whole group are duplicates. More find more."""
    hashes_per_bucket: int = 8
    """Hashes of a group. More ask for more similarity."""
    seed: int = 1
    """Decides the hash functions."""

    @property
    def threshold(self) -> float:
        """The similarity about which documents begin to be found (about 0.72 at the defaults)."""
        return (1 / self.buckets) ** (1 / self.hashes_per_bucket)


def sign(out: Path, unit: int, texts: Iterable[str], config: NearDuplicateConfig) -> int:
    """Write the sorted signatures of a unit's documents, a file for each bucket, and return how
    many documents there are; those with less than an n-gram of words have no signature."""
    from datatrove.data import Document

    counted = 0

    def documents() -> Iterator[Document]:
        nonlocal counted
        for text in texts:
            assert counted < DOCUMENTS_PER_UNIT
            yield Document(text=text, id="")
            counted += 1

    with _quiet():
        _signature_step(out, config).run(documents(), rank=unit)
    return counted


def match(signatures: Path, out: Path, bucket: int, config: NearDuplicateConfig) -> None:
    """Write the pairs of documents whose hashes agree in a bucket: a merge of the units' files."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets

    units = len(list((signatures / f"bucket_{bucket:03d}").iterdir()))
    with _quiet(), _open_files(units):
        step = MinhashDedupBuckets(
            str(signatures), str(out), config=_minhash(config), lines_to_buffer=256
        )
        step.run(rank=bucket, world_size=config.buckets)


def join(pairs: Path, out: Path, units: int, config: NearDuplicateConfig) -> None:
    """Write the clusters that the pairs of all buckets join documents into; cluster ids count up
    from 0 in the order of (unit, index)."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupCluster

    with _quiet(), _open_files(2 * units):
        step = MinhashDedupCluster(
            str(pairs),
            str(out),
            config=_minhash(config),
            save_cluster_id=True,
            lines_to_buffer=4096,
        )
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar cannot be turned off
            step.run()


def _signature_step(out: Path, config: NearDuplicateConfig) -> MinhashDedupSignature:
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer

    class Step(MinhashDedupSignature):
        """Takes its shingles from `ngrams`, each once, and a long document in pieces."""

        def get_shingles(self, text: str) -> np.ndarray:
            hashes = ngrams_of_length(word_hashes(words(text)), config.ngram)
            return np.unique(hashes).reshape(-1, 1)

        def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
            pieces = [
                super(Step, self).get_signature(shingles[start : start + SHINGLES_AT_ONCE])
                for start in range(0, len(shingles), SHINGLES_AT_ONCE)
            ]
            return pieces[0] if len(pieces) == 1 else np.min(pieces, axis=0).tolist()

    # One is asked for, and never called.
    return Step(str(out), config=_minhash(config), language=WhitespaceTokenizer())


def _minhash(config: NearDuplicateConfig) -> MinhashConfig:
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    return MinhashConfig(
        n_grams=config.ngram,
        num_buckets=config.buckets,
        hashes_per_bucket=config.hashes_per_bucket,
        seed=config.seed,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep datatrove's log of every step off stderr."""
    from loguru import logger

    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")


@contextlib.contextmanager
def _open_files(number: int) -> Iterator[None]:
    """Allow the process to open so many files more: a step opens one of every unit at once.

    Raises UserError when the machine's hard limit is below that.
    """
    needed = number + len(os.listdir("/proc/self/fd")) + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"near duplicates need {needed} open files, and this machine allows {hard}; raise the "
            "limit (ulimit -Hn), or make fewer and larger units"
        )
    if soft == resource.RLIM_INFINITY or soft >= needed:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
