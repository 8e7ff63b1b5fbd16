"""The model card of an exported model: README.md, as the Hugging Face hub reads it.

In: the model, what it was exported from, what the recipe or the command says. Out: README.md with
the hub's metadata, and loss.svg. What is not known is left out; nothing that tells of a machine's
folders or name gets in. A card that somebody has edited stays, and the new one is written beside
it. `export.py` is the caller.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from restomod.tools.export import card_sections as sections
from restomod.tools.export.card_curve import loss_curve
from restomod.tools.export.card_facts import Facts

log = logging.getLogger(__name__)

CARD = "README.md"
BESIDE = "README.new.md"
CURVE = "loss.svg"
MARK = re.compile(r"\n<!-- written by restomod, sha256 ([0-9a-f]{64}) -->\n\Z")


def write_card(facts: Facts, out: Path) -> str:
    """Write the card into an exported folder; return where it is, as text."""
    curve = loss_curve(facts.log) if facts.log else ""
    if curve:
        (out / CURVE).write_text(curve)
    text = sections.metadata(facts) + "\n".join(
        part for part in sections.body(facts, CURVE if curve else "") if part
    )
    if is_ours(out / CARD):
        (out / CARD).write_text(signed(text))
        return f"model card: {out / CARD}\n"
    (out / BESIDE).write_text(signed(text))
    return f"model card: {out / CARD} was edited and stays; the new one is {out / BESIDE}\n"


def signed(text: str) -> str:
    """Return a card with a mark at its end by which `is_ours` tells whether it was edited."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}\n<!-- written by restomod, sha256 {digest} -->\n"


def is_ours(path: Path) -> bool:
    """Return whether a card is missing or as we wrote it."""
    if not path.exists():
        return True
    text = path.read_text(errors="replace")
    mark = MARK.search(text)
    return bool(mark) and signed(text[: mark.start()]) == text  # type: ignore[union-attr]
