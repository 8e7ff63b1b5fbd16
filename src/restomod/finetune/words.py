"""Word-level labels on tokens: which token speaks for a word.

In: texts with the spans of their words. Out: for each word the place of its first token, or none.
Words are looked up by the characters that tokens cover in the text as it is written, so that it
does not matter whether a token begins with the space before a word, what the normaliser changes,
or that bytes of one character are tokens of their own. `examples.py` calls this.

A word has no token where nothing of it is left after normalising, where it only has a part of a
token that an earlier word has taken, and where the text was cut before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Span = tuple[int, int]
WORD = re.compile(r"\w+|[^\w\s]")
"""How texts that come with spans are taken apart."""


def join_words(words: Sequence[str]) -> tuple[str, list[Span]]:
    """Return the text of words with spaces between, and where each word lies in it."""
    spans = []
    end = -1
    for word in words:
        start = end + 1
        end = start + len(word)
        spans.append((start, end))
    return " ".join(words), spans


def first_tokens(words: Sequence[Span], offsets: Sequence[Span]) -> list[int]:
    """Return each word's first token, -1 for words without one.

    `words` and `offsets` are [begin, end) in characters, both in order; a token serves one word.
    """
    firsts = []
    token = 0
    for begin, end in words:
        while token < len(offsets) and offsets[token][1] <= begin:
            token += 1
        # Tokens without characters lie anywhere, also after ones that lie later.
        found = token
        while found < len(offsets) and offsets[found][0] >= offsets[found][1]:
            found += 1
        if begin < end and found < len(offsets) and offsets[found][0] < end:
            firsts.append(found)
            token = found + 1
        else:
            firsts.append(-1)
    return firsts


def tags_of_spans(text: str, spans: Sequence[dict]) -> tuple[list[Span], list[str]]:
    """Return the words of a text and their tags (B-, I-, O) from labelled spans of characters.

    Raises ValueError for spans that overlap, lie outside the text or hold no word.
    """
    words = [match.span() for match in WORD.finditer(text)]
    tags = ["O"] * len(words)
    for span in spans:
        begin, end, label = span["start"], span["end"], span["label"]
        inside = [n for n, (a, b) in enumerate(words) if a < end and b > begin]
        if not (0 <= begin < end <= len(text)) or not inside:
            raise ValueError(
                f"span {begin} to {end} ({label}) lies outside the text or holds none of its words"
            )
        if any(tags[n] != "O" for n in inside):
            raise ValueError(f"span {begin} to {end} ({label}) shares a word with another")
        for n in inside:
            tags[n] = f"{'B' if n == inside[0] else 'I'}-{label}"
    return words, tags
