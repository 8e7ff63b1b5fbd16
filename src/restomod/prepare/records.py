"""What the readers of all formats share: a record, how to read one, fields, encodings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BROKEN_FILE = "broken_file"
UNREADABLE_FILE = "unreadable_file"
FIELD_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Reading:
    """How records are read."""

    text_fields: tuple[str, ...] = ("text",)
    encoding: str = "utf-8"
    text_documents: str = "file"
    max_record_bytes: int = 1 << 31


@dataclass(frozen=True, slots=True)
class Record:
    """Something that a file holds."""

    number: int
    """Line, row or sample in its piece, counted from 1; 0 stands for the whole piece."""
    text: str = ""
    reason: str = ""
    """Why there is no text; empty if there is."""
    detail: str = ""
    """What was wrong, in words."""
    undecodable: bool = False
    """Whether bytes that are not of the encoding were replaced."""
    surrogates: bool = False
    """Whether lone surrogates were replaced."""
    records: int = 1
    """How many records this stands for, where all of a file are lost for one reason."""


def decode(data: bytes, encoding: str = "utf-8") -> tuple[str, bool]:
    """Return the text, and whether all of it could be decoded."""
    try:
        return data.decode(encoding), True
    except UnicodeDecodeError:
        return data.decode(encoding, errors="replace"), False


def choose_fields(record: Any, fields: Sequence[str]) -> tuple[str, str, str]:
    """Return (text, reason, detail): the fields' texts with an empty line between, or what is
    wrong with one of them. A null leaves its field out if another holds a text."""
    if not isinstance(record, dict):
        return "", "not_an_object", f"holds a {type(record).__name__}"
    texts = []
    for name in fields:
        found, value = look_up(record, name)
        if not found:
            known = ", ".join(fields_of(record)[:20])
            return "", "missing_field", f"no field {name!r} among: {known}"
        if value is None:
            continue
        if not isinstance(value, str):
            return "", "non_string_field", f"{name!r} holds a {type(value).__name__}"
        texts.append(value)
    if not texts:
        return "", "non_string_field", null_fields(fields)
    return FIELD_SEPARATOR.join(texts), "", ""


def null_fields(fields: Sequence[str]) -> str:
    """Say that no field holds a text."""
    names = " and ".join(repr(name) for name in fields)
    return f"{names} {'holds' if len(fields) == 1 else 'hold'} null"


def fields_of(record: dict[str, Any]) -> list[str]:
    """Return a record's fields, and in the place of objects, the fields inside."""
    names = []
    for name, value in record.items():
        inside = fields_of(value) if isinstance(value, dict) else []
        names += [f"{name}.{part}" for part in inside] or [name]
    return names


def look_up(record: dict[str, Any], name: str) -> tuple[bool, Any]:
    """Return whether there is a field, and its value; the name as it stands goes before a path."""
    if name in record:
        return True, record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = value[part]
    return True, value
