import argparse

import pytest

from restomod.units import counted, duration, parse_duration, parse_slots, positive


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("1_200_000", 1_200_000),
        ("50B", 50 * 10**9),
        ("1.719T", 1_719 * 10**9),
        (7, 7),
        ("2.5K", 2500),
    ],
)
def test_slots_are_exact(text, slots):
    assert parse_slots(text) == slots


@pytest.mark.parametrize("text", ["", "B", "-3", "1e9", "0.5", "1.2345K", "5 apples"])
def test_slots_that_are_none(text):
    with pytest.raises(ValueError, match="not a"):
        parse_slots(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.14159, "3.14 s"), (59.7, "1 min 00 s"), (3599.9, "1 h 00 min"), (273_600, "3 d 04 h")],
)
def test_durations_show_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), (1.5, 1.5), ("45s", 45), ("30m", 1800), ("23h30m", 84_600), ("1d", 86_400)],
)
def test_durations_of_recipes_are_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-3s", "5 apples", "30m2h", "23h30"])
def test_durations_that_are_none(text):
    with pytest.raises(ValueError, match="is not a time such as"):
        parse_duration(text)


def test_things_are_counted_in_words_as_they_are_many():
    assert counted(1, "rank") == "1 rank"
    assert [counted(n, "rank") for n in (0, 2, 1024)] == ["0 ranks", "2 ranks", "1,024 ranks"]
    assert counted(1, "batch", "batches") == "1 batch"
    assert counted(3, "batch", "batches") == "3 batches"


def test_positive_numbers_of_a_command_line():
    assert positive("3") == 3
    for text in ("0", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
            positive(text)
