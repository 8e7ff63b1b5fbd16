"""What tasks consist of, whatever they were read or built from.

`offline/build.py` and `folders.py` make these, `retrieval.py` and `classification.py` score them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class RetrievalItems:
    """Queries, documents, and which documents answer which query."""

    queries: list[str]
    documents: list[str]
    relevant: list[dict[int, int]]
    """Of each query: number of a document -> grade, above 0."""
    groups: list[str] = field(default_factory=list)
    """Of each query: what it comes from (a distribution), if that is known."""
    about: dict[str, Any] = field(default_factory=dict)
    """What a reader should know: sizes, sources, what was left out."""

    def reversed(self) -> RetrievalItems:
        """Return the task in which documents ask for queries, of one-to-one items."""
        assert all(answers == {n: 1} for n, answers in enumerate(self.relevant))
        return RetrievalItems(self.documents, self.queries, self.relevant, self.groups, self.about)

    @property
    def fingerprint(self) -> str:
        """A hash of all that is scored."""
        return digest([self.queries, self.documents, [sorted(r.items()) for r in self.relevant]])


@dataclass
class LabelledItems:
    """Texts with labels, to learn from and to be judged by."""

    train_texts: list[str]
    train_labels: list[str]
    test_texts: list[str]
    test_labels: list[str]
    groups: list[str] = field(default_factory=list)
    """Of each test text: what it comes from (a file), if that is known."""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A hash of all that is scored."""
        return digest([self.train_texts, self.train_labels, self.test_texts, self.test_labels])


def digest(value: Any) -> str:
    """Return a short hash of plain values."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def to_plain(items: RetrievalItems | LabelledItems) -> dict[str, Any]:
    """Return items as JSON can hold them."""
    plain = asdict(items)
    if isinstance(items, RetrievalItems):
        plain["relevant"] = [sorted(answers.items()) for answers in items.relevant]
    return plain


def from_plain(plain: dict[str, Any]) -> RetrievalItems | LabelledItems:
    """Return the items that `to_plain` wrote."""
    if "relevant" in plain:
        relevant = [{int(n): int(grade) for n, grade in answers} for answers in plain["relevant"]]
        return RetrievalItems(**(plain | {"relevant": relevant}))
    return LabelledItems(**plain)
