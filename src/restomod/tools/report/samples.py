"""Write passages with a hidden word, and what models guessed for it.

In: evaluation.json as read, or lines of `samples` of one run or of several. Out: HTML strings,
every string from a file escaped; empty ones where there is nothing. `run.py` and `compare.py`
call this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from restomod.tools.pages.markup import bar, key, percent
from restomod.tools.pages.markup import passage as as_it_stands
from restomod.tools.record.metrics_log import RunLog, number

SHOWN = 60


@dataclass(frozen=True)
class Passage:
    """A passage, the word that [MASK] hides, and guesses with their probabilities."""

    domain: str
    text: str
    expected: str | None
    guesses: Sequence[tuple[str, float]]


def passages(examples: Any) -> list[Passage]:
    """Read passages; what is none is left out."""
    found = []
    for example in examples if isinstance(examples, list) else ():
        if isinstance(example, dict):
            guesses, expected = example.get("predictions"), example.get("expected")
            found.append(
                Passage(
                    str(example.get("domain") or ""),
                    str(example.get("text", "")),
                    None if expected is None else str(expected),
                    [
                        (str(guess.get("token", "")), number(guess.get("probability")) or 0.0)
                        for guess in (guesses if isinstance(guesses, list) else ())
                        if isinstance(guess, dict)
                    ],
                )
            )
    return found


def fill_mask(evaluation: dict[str, Any]) -> str:
    """Show all guesses of the final evaluation."""
    shown = passages(evaluation.get("fill_mask"))[:SHOWN]
    return _cards(
        [_card(p, [_guess("", token, share, p) for token, share in p.guesses]) for p in shown]
    )


def samples(log: RunLog) -> str:
    """Show how the likeliest guess for each passage changed as training went on."""
    lines = [(number(line.get("step")), _by_text(line)) for line in log.samples.items()]
    if not lines:
        return ""
    cards = []
    for text, passage in list(lines[-1][1].items())[:SHOWN]:
        rows = [
            _guess("" if step is None else f"step {step:,.0f}", *of[text].guesses[0], passage)
            for step, of in lines
            if text in of and of[text].guesses
        ]
        cards.append(_card(passage, rows))
    note = '<p class="note">The likeliest guess at some of the evaluations.</p>'
    return note + _cards(cards) if cards else ""


def compared(runs: Mapping[str, tuple[str, RunLog]]) -> str:
    """Show what each run guesses, as last logged, for passages that several of them have; a run's
    name stands before the CSS class of its colour."""
    last = {
        name: _by_text(log.samples.items()[-1])
        for name, (_, log) in runs.items()
        if log.samples.items()
    }
    if not last:
        return ""
    texts = dict.fromkeys(text for of in last.values() for text in of)
    cards: list[str] = []
    for text in texts:
        having = {name: of[text] for name, of in last.items() if text in of}
        if len(having) > 1 and len(cards) < SHOWN:
            rows = [
                _guess(name, *passage.guesses[0], passage, key(runs[name][0]))
                for name, passage in having.items()
                if passage.guesses
            ]
            cards.append(_card(next(iter(having.values())), rows))
    if not cards:
        return '<p class="note">The runs logged guesses, but for no passage in common.</p>'
    return (
        '<p class="note">The likeliest guess of each run at its last evaluation, for passages that '
        f"several of them have.</p>{_cards(cards)}"
    )


def _by_text(line: Mapping[str, Any]) -> dict[str, Passage]:
    return {passage.text: passage for passage in passages(line.get("samples"))}


def _guess(title: str, token: str, share: float, passage: Passage, colour: str = "") -> str:
    right = passage.expected is not None and token.strip() == passage.expected.strip()
    named = f"<span>{colour}{escape(title)}</span>" if title else ""
    classes = " ".join(filter(None, ("named" if title else "", "right" if right else "")))
    mark = ' <span class="sr">(right)</span>' if right else ""
    return (
        f'<li class="{classes}">{named}<code>{escape(token.strip() or repr(token))}{mark}</code>'
        f"{bar(share)}<span>{percent(share)}</span></li>"
    )


def _card(passage: Passage, rows: Sequence[str]) -> str:
    text = escape(passage.text).replace("[MASK]", "<mark>[MASK]</mark>")
    answer = "" if passage.expected is None else f"expected <code>{escape(passage.expected)}</code>"
    about = ", ".join(filter(None, (escape(passage.domain), answer)))
    return f"<article>{as_it_stands(text)}<ol>{''.join(rows)}</ol><p>{about}</p></article>"


def _cards(cards: Sequence[str]) -> str:
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""
