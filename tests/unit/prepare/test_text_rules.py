"""Normalisation and quality rules, each by the smallest text that it changes or drops."""

import pytest

from restomod.prepare.normalise import NormaliseConfig, normalise
from restomod.prepare.quality import QualityConfig, broken_rule


@pytest.mark.parametrize(
    ("changes", "text", "expected"),
    [
        ({}, "e\u0301", "\u00e9"),
        ({"unicode": "NFD"}, "\u00e9", "e\u0301"),
        ({"unicode": "NFKC"}, "\ufb01\uff21", "fiA"),
        ({"unicode": "none"}, "e\u0301", "e\u0301"),
        ({}, "a\r\nb\rc", "a\nb\nc"),
        ({"unix_newlines": False, "strip": False}, "a\r\nb", "a\r\nb"),
        ({}, "\ufeffa\0b\x1bc\td\x85e", "abc\td\x85e"),
        ({"remove_control_characters": False}, "a\0b", "a\0b"),
        ({}, "\n  a  \n b \n", "a\n b"),
        ({"strip": False}, " a ", " a "),
    ],
)
def test_normalisation(changes, text, expected):
    assert normalise(text, NormaliseConfig(**changes)) == expected


@pytest.mark.parametrize(
    ("limit", "value", "broken", "kept", "name"),
    [
        ("min_characters", 3, "ab", "abc", "too_few_characters"),
        ("max_characters", 3, "abcd", "abc", "too_many_characters"),
        ("min_words", 2, "word", "two words", "too_few_words"),
        ("max_words", 2, "one two three", "one two", "too_many_words"),
        ("min_mean_word_length", 3, "a bc", "abcd ef", "words_too_short"),
        ("max_mean_word_length", 3, "abcd", "abc", "words_too_long"),
        ("max_digit_share", 0.5, "123a", "12ab", "too_many_digits"),
        ("max_symbol_share", 0.5, "!!!a", "!!ab", "too_many_symbols"),
        ("max_symbol_word_ratio", 0.5, "# # a ...", "# a b c d", "too_many_hashes_or_ellipses"),
        ("min_alphabetic_word_share", 0.5, "1 2 a", "1 a", "too_few_alphabetic_words"),
        ("max_bullet_line_share", 0.5, "- a\n- b\nc", "- a\nb", "too_many_bullets"),
        ("max_ellipsis_line_share", 0.5, "a...\nb…\nc", "a...\nb", "too_many_ellipsis_lines"),
        ("max_repeated_line_share", 0.5, "a\na\n\na", "a\na\nb", "repeated_lines"),
        ("max_repeated_character_share", 0.3, "aa\naa\nb", "a\na\nbbb", "repeated_text"),
        ("min_stop_words", 2, "the cat", "the end of it", "too_few_stop_words"),
    ],
)
def test_each_rule_drops_what_is_beyond_its_limit_only(limit, value, broken, kept, name):
    config = QualityConfig(**{limit: value})
    assert config.impossible() == []
    assert broken_rule(broken, config) == name
    assert broken_rule(kept, config) == ""
    assert broken_rule(broken, QualityConfig()) == ""


def test_the_defaults_drop_what_holds_no_word():
    assert broken_rule("", QualityConfig()) == "too_few_characters"
    assert broken_rule(" \n", QualityConfig()) == "too_few_words"


def test_stop_words_are_those_of_the_language_that_the_recipe_names():
    german = QualityConfig(min_stop_words=2, stop_words=["der", "und", "ist"])
    assert broken_rule("der Tag und das Jahr", german) == ""
    assert broken_rule("the end of it", german) == "too_few_stop_words"
    too_few = QualityConfig(min_stop_words=2, stop_words=["der", "der"])
    assert [key for key, _ in too_few.impossible()] == ["min_stop_words"]
