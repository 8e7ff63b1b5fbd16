"""Rules that drop documents by what can be counted in them.

In: a normalised text. Out: the name of the first rule that it breaks, or nothing. The rules are the
field's usual ones (Rae et al. 2021, Gopher, appendix A.1; Raffel et al. 2020, C4, section 2.2); the
defaults only drop what is empty, since code and tables break most rules for prose. Words are what
white space separates. `documents.py` is the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

DIGIT = re.compile(r"\d")
ALPHABETIC = re.compile(r"[^\W\d_]")
SYMBOL = re.compile(r"[^\w\s]")
BULLETS = ("-", "*", "•", "‣", "●", "·", "\u2013")
ELLIPSES = ("...", "…")
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Gopher's, by which English prose is told from lists and menus."""
UNLIMITED = 1 << 40


@dataclass
class QualityConfig:
    """Limits; a document outside of one is dropped and counted under the name in brackets."""

    min_characters: int = 1
    """[too_few_characters]"""
    max_characters: int = UNLIMITED
    """[too_many_characters]"""
    min_words: int = 1
    """[too_few_words] Gopher: 50."""
    max_words: int = UNLIMITED
    """[too_many_words] Gopher: 100,000."""
    min_mean_word_length: float = 0.0
    """[words_too_short] Characters. Gopher: 3."""
    max_mean_word_length: float = float(UNLIMITED)
    """[words_too_long] Characters. Gopher: 10."""
    max_digit_share: float = 1.0
    """[too_many_digits] Of all characters."""
    max_symbol_share: float = 1.0
    """[too_many_symbols] Of all characters: no letter, digit, underscore or white space."""
    max_symbol_word_ratio: float = float(UNLIMITED)
    """[too_many_hashes_or_ellipses] `#` and ellipses per word. Gopher: 0.1."""
    min_alphabetic_word_share: float = 0.0
    """[too_few_alphabetic_words] Words with a letter in them, of all. Gopher: 0.8."""
    max_bullet_line_share: float = 1.0
    """[too_many_bullets] Lines that begin with a bullet, of all that are not empty. Gopher: 0.9."""
    max_ellipsis_line_share: float = 1.0
    """[too_many_ellipsis_lines] Lines that end in an ellipsis. Gopher: 0.3."""
    max_repeated_line_share: float = 1.0
    """[repeated_lines] Lines that stand in the document before. Gopher: 0.3."""
    max_repeated_character_share: float = 1.0
    """[repeated_text] Characters in such lines, of those in all lines. Gopher: 0.2."""
    min_stop_words: int = 0
    """[too_few_stop_words] How many of `stop_words`. Gopher: 2."""
    stop_words: list[str] = field(default_factory=lambda: list(STOP_WORDS))
    """Words that `min_stop_words` counts. These are Gopher's, for English; other languages need
    their own."""

    def impossible(self) -> list[tuple[str, str]]:
        """Return (key, reason) for limits that nothing can keep."""
        bad = []
        for low, high in (
            ("min_characters", "max_characters"),
            ("min_words", "max_words"),
            ("min_mean_word_length", "max_mean_word_length"),
        ):
            if not 0 <= getattr(self, low) <= getattr(self, high):
                bad.append((low, f"must lie in 0 .. {high}"))
        for key in self.__dataclass_fields__:
            if key.endswith("_share") and not 0 <= getattr(self, key) <= 1:
                bad.append((key, "must lie in [0, 1]"))
        if self.max_symbol_word_ratio < 0:
            bad.append(("max_symbol_word_ratio", "must not be negative"))
        most = len(set(self.stop_words))
        if not 0 <= self.min_stop_words <= most:
            bad.append(("min_stop_words", f"must lie in 0 .. {most}, the number of stop_words"))
        return bad


def broken_rule(text: str, config: QualityConfig) -> str:
    """Return the name of the first rule that the text breaks; empty if it keeps them all."""
    return next(_broken(text, config), "")


def _broken(text: str, config: QualityConfig) -> Iterator[str]:
    """Yield the rules that the text breaks, the cheap ones first."""
    characters = len(text)
    if characters < config.min_characters:
        yield "too_few_characters"
    if characters > config.max_characters:
        yield "too_many_characters"
    words = text.split()
    count = max(1, len(words))
    if len(words) < config.min_words:
        yield "too_few_words"
    if len(words) > config.max_words:
        yield "too_many_words"
    mean = sum(map(len, words)) / count
    if mean < config.min_mean_word_length:
        yield "words_too_short"
    if mean > config.max_mean_word_length:
        yield "words_too_long"
    if config.max_digit_share < 1 and _count(DIGIT, text) > config.max_digit_share * characters:
        yield "too_many_digits"
    if config.max_symbol_share < 1 and _count(SYMBOL, text) > config.max_symbol_share * characters:
        yield "too_many_symbols"
    if config.max_symbol_word_ratio < UNLIMITED:
        symbols = text.count("#") + sum(text.count(ellipsis) for ellipsis in ELLIPSES)
        if symbols > config.max_symbol_word_ratio * count:
            yield "too_many_hashes_or_ellipses"
    if config.min_alphabetic_word_share > 0:
        alphabetic = sum(ALPHABETIC.search(word) is not None for word in words)
        if alphabetic < config.min_alphabetic_word_share * count:
            yield "too_few_alphabetic_words"
    yield from _broken_by_lines(text, config)
    if len(set(config.stop_words).intersection(words)) < config.min_stop_words:
        yield "too_few_stop_words"


def _broken_by_lines(text: str, config: QualityConfig) -> Iterator[str]:
    by_lines = (
        config.max_bullet_line_share,
        config.max_ellipsis_line_share,
        config.max_repeated_line_share,
        config.max_repeated_character_share,
    )
    if min(by_lines) >= 1:
        return
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line]
    count = len(lines)
    if sum(line.startswith(BULLETS) for line in lines) > config.max_bullet_line_share * count:
        yield "too_many_bullets"
    if sum(line.endswith(ELLIPSES) for line in lines) > config.max_ellipsis_line_share * count:
        yield "too_many_ellipsis_lines"
    first: set[str] = set()
    repeated = repeated_characters = 0
    for line in lines:
        if line in first:
            repeated += 1
            repeated_characters += len(line)
        first.add(line)
    if repeated > config.max_repeated_line_share * count:
        yield "repeated_lines"
    if repeated_characters > config.max_repeated_character_share * sum(map(len, lines)):
        yield "repeated_text"


def _count(pattern: re.Pattern[str], text: str) -> int:
    return sum(1 for _ in pattern.finditer(text))
