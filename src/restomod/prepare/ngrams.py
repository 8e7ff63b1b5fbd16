"""Words of a text and 64-bit hashes of its word n-grams, the same on every machine.

In: a text in any script. Out: its normalised words, and one uint64 per n-gram. Near-duplicate
search takes its shingles from here, decontamination its n-grams, and the fertility of a tokenizer
its count of words, so that all three mean the same by a word.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import regex
import xxhash

WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
"""Letters, numbers and the marks on them; everything else separates words."""
UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
"""Characters of scripts written without spaces: each counts as a word of its own."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that multiplying by it loses no bit of a hash."""


def words(text: str) -> list[str]:
    """Return the words of a text: NFKC, lower case, without punctuation and white space."""
    text = unicodedata.normalize("NFKC", text).lower()
    if not text.isascii():
        text = UNSPACED.sub(r" \g<0> ", text)
    return WORD.findall(text)


def word_hashes(found: Sequence[str]) -> np.ndarray:
    """Return the hash of every word, [words] uint64."""
    return np.fromiter(map(xxhash.xxh64_intdigest, found), np.uint64, len(found))


def ngram_hashes(hashes: np.ndarray, longest: int) -> Iterator[np.ndarray]:
    """Yield the hashes of all 1-grams, then of all 2-grams, and so on up to `longest` words.

    `hashes` is what `word_hashes` returns. Each array is [words - n + 1] uint64, entry i for the
    n-gram that begins at word i; those of an n above the number of words are empty. A polynomial
    in the words' hashes modulo 2**64: n-grams that differ collide by chance only.
    """
    current = hashes
    yield current
    for n in range(2, longest + 1):
        if len(hashes) < n:
            yield np.empty(0, np.uint64)
            continue
        current = current[:-1] * FACTOR + hashes[n - 1 :]
        yield current


def ngrams_of_length(hashes: np.ndarray, n: int) -> np.ndarray:
    """Return the hashes of all n-grams, [max(0, words - n + 1)] uint64."""
    *_, last = ngram_hashes(hashes, n)
    return last
