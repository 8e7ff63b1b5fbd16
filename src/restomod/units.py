"""How recipes and commands write numbers (token slots, 50B; durations, 23h30m; counts), and how
pages and terminals show seconds and how many there are of something."""

from __future__ import annotations

import argparse
import re
from decimal import Decimal

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_slots(text: str | int) -> int:
    """Return the number of token slots that `1_200_000`, `50B` or `1.719T` stands for.

    Raises ValueError for anything else, and for a number that is not whole.
    """
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?)([KMBT]?)", str(text).strip())
    if not match:
        raise ValueError(f"`{text}` is not a number of slots such as 1_200_000, 50B or 1.719T")
    slots = Decimal(match[1].replace("_", "")) * SUFFIXES[match[2]]
    if slots != int(slots):
        raise ValueError(f"`{text}` is not a whole number of slots")
    return int(slots)


def parse_duration(text: str | int) -> float:
    """Return the seconds that `90`, `45s`, `30m` or `23h30m` stands for.

    Raises ValueError for anything else.
    """
    text = str(text).strip()
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not match or not any(match.groups()):
        raise ValueError(f"`{text}` is not a time such as 45s, 30m or 23h30m")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def duration(seconds: float) -> str:
    """Write seconds with the two units that matter: 3 d 4 h, 2 h 05 min, 41 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s" if seconds < 10 else f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 60:
        return f"{minutes} min {whole % 60:02d} s"
    if hours < 48:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{days} d {hours % 24:02d} h"


def counted(count: int, thing: str, things: str = "") -> str:
    """Write how many things there are: 1 rank, 1,024 ranks; `things` for another plural than s."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def positive(text: str) -> int:
    """Return the whole number above 0 that an option of a command line is given."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
