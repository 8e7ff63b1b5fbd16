"""How well a tokenizer suits a corpus: tokens per word, bytes per token, pieces of characters.

In: tokenizers by name (the new one, and any to compare it with) and sampled texts by domain. Out:
a `Fertility` of every domain and tokenizer, for the data card, and a table in plain text. Fertility
is tokens per word (Rust et al. 2021, "How good is your tokenizer?"); words are those of `ngrams`,
so punctuation counts as tokens but not as words, and every character of a script without spaces is
a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError
from restomod.prepare.ngrams import words

BATCH_CHARACTERS = 1_000_000
RAW_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""How vocabularies with byte fallback spell a byte."""
REPLACEMENT_IN_BYTES = "\u00ef\u00bf\u00bd"
"""U+FFFD as byte-level vocabularies spell it, which is a character of its own."""
HEAD = ("domain", "tokenizer", "words", "tokens", "tokens/word", "bytes/token", "unknown", "pieces")


@dataclass(frozen=True)
class Fertility:
    """One tokenizer on one domain; counts are of the sampled texts."""

    documents: int
    text_bytes: int
    """UTF-8 bytes."""
    words: int
    tokens: int
    unknown_tokens: int
    """Tokens that stand for text the vocabulary cannot spell."""
    piece_tokens: int
    """Tokens that hold less than a whole character: bytes that the vocabulary falls back to."""

    @property
    def tokens_per_word(self) -> float:
        """0 without any word."""
        return self.tokens / self.words if self.words else 0.0

    @property
    def bytes_per_token(self) -> float:
        """0 without any token."""
        return self.text_bytes / self.tokens if self.tokens else 0.0

    @property
    def unknown_share(self) -> float:
        """Of the tokens; 0 without any."""
        return self.unknown_tokens / self.tokens if self.tokens else 0.0

    @property
    def piece_share(self) -> float:
        """Of the tokens; 0 without any."""
        return self.piece_tokens / self.tokens if self.tokens else 0.0

    def as_dict(self) -> dict[str, float]:
        """Return counts and ratios for a manifest."""
        return {
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            "words": self.words,
            "tokens": self.tokens,
            "unknown_tokens": self.unknown_tokens,
            "piece_tokens": self.piece_tokens,
            "tokens_per_word": self.tokens_per_word,
            "bytes_per_token": self.bytes_per_token,
            "unknown_share": self.unknown_share,
            "piece_share": self.piece_share,
        }


def measure(
    tokenizers: Mapping[str, Tokenizer], domains: Mapping[str, Iterable[str]]
) -> dict[str, dict[str, Fertility]]:
    """Return the fertility by domain and tokenizer. Texts are read once, a few at a time, and must
    be encodable as UTF-8. Raises UserError without a tokenizer."""
    if not tokenizers:
        raise UserError("fertility: name at least one tokenizer to measure")
    pieces = {name: _piece_ids(tokenizer) for name, tokenizer in tokenizers.items()}
    return {domain: _measure_domain(tokenizers, pieces, texts) for domain, texts in domains.items()}


def _measure_domain(
    tokenizers: Mapping[str, Tokenizer], pieces: Mapping[str, np.ndarray], texts: Iterable[str]
) -> dict[str, Fertility]:
    counts = {name: np.zeros(t.vocab_size, np.int64) for name, t in tokenizers.items()}
    documents = text_bytes = word_count = 0
    for batch in _batches(texts):
        documents += len(batch)
        text_bytes += sum(len(text.encode()) for text in batch)
        word_count += sum(len(words(text)) for text in batch)
        for name, tokenizer in tokenizers.items():
            ids = np.concatenate(tokenizer.encode_batch(batch))
            counts[name] += np.bincount(ids, minlength=tokenizer.vocab_size)
    return {
        name: Fertility(
            documents=documents,
            text_bytes=text_bytes,
            words=word_count,
            tokens=int(counts[name].sum()),
            unknown_tokens=0 if tokenizer.unk_id is None else int(counts[name][tokenizer.unk_id]),
            piece_tokens=int(counts[name][pieces[name]].sum()),
        )
        for name, tokenizer in tokenizers.items()
    }


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _piece_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids of tokens that hold less than a whole character, [n] int64."""
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    pieces = []
    for token, number in vocabulary.items():
        if RAW_BYTE.fullmatch(token) or (
            "\ufffd" in tokenizer.decode([number])
            and "\ufffd" not in token
            and REPLACEMENT_IN_BYTES not in token
        ):
            pieces.append(number)
    return np.array(sorted(pieces), np.int64)


def format_table(measured: Mapping[str, Mapping[str, Fertility]]) -> str:
    """Return what `measure` found as lines of aligned columns."""
    rows = [list(HEAD)]
    for domain, of_domain in measured.items():
        for name, fertility in of_domain.items():
            rows.append(
                [
                    domain,
                    name,
                    f"{fertility.words:,}",
                    f"{fertility.tokens:,}",
                    f"{fertility.tokens_per_word:.3f}",
                    f"{fertility.bytes_per_token:.3f}",
                    f"{fertility.unknown_share:.3%}",
                    f"{fertility.piece_share:.3%}",
                ]
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
