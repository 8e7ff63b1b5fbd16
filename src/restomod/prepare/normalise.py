"""Text in one form: Unicode, line ends, control characters.

In: a document's text. Out: the text that everything after sees: quality rules, hashes, n-grams, the
tokenizer. `documents.py` is the caller.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

FORMS = ("none", "NFC", "NFD", "NFKC", "NFKD")
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
"""Control characters that are no white space, and the byte order mark."""


@dataclass
class NormaliseConfig:
    """What is made equal in all documents."""

    unicode: str = field(default="NFC", metadata={"choices": FORMS})
    """Unicode normal form; NFKC and NFKD also undo ligatures, full width and the like."""
    unix_newlines: bool = True
    """Whether line ends become a line feed."""
    remove_control_characters: bool = True
    """Whether control characters other than white space are removed, and U+FEFF."""
    strip: bool = True
    """Whether white space around a document and at the end of its lines is removed."""


def normalise(text: str, config: NormaliseConfig) -> str:
    """Return the text in the form that `config` asks for; doing it twice changes nothing more."""
    if config.unix_newlines and "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if config.remove_control_characters:
        text = CONTROL.sub("", text)
    if config.unicode != "none" and not unicodedata.is_normalized(config.unicode, text):  # type: ignore[arg-type]
        text = unicodedata.normalize(config.unicode, text)  # type: ignore[arg-type]
    if config.strip:
        text = "\n".join(line.rstrip() for line in text.split("\n")).strip()
    return text
