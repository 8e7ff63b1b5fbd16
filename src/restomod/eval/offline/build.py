"""Tasks out of installed distributions: built the same way every time, kept in cache_dir.

In: the distributions to use (`packages.py`), how many items. Out: `RetrievalItems` and
`LabelledItems`. `eval/tasks.py` calls `offline_items`, and `eval/run.py` `other_pairs`, which the
treatments of untuned features are fitted on.

Traps that this closes, beside those of `functions.py`: summaries and headings that stand more than
once have no single answer and are dropped; so is code that is nearly another item's (half of its
longer lines) or that the model was trained on; and no distribution gives more than a tenth.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from restomod.eval.items import (
    LabelledItems,
    RetrievalItems,
    digest,
    from_plain,
    to_plain,
)
from restomod.eval.offline.files import long_document
from restomod.eval.offline.functions import documented_functions
from restomod.eval.offline.packages import Packages, shared
from restomod.eval.offline.sections import sections
from restomod.harvest.heldout import line_hashes
from restomod.harvest.installed import FileTask, Source, hash_key, plan_files
from restomod.harvest.python_text import reason_to_skip
from restomod.prepare.atomic import replacing

FORMAT = 1
KINDS = ("functions", "functions-named", "sections", "long", "origin")
LARGEST_SHARE = 0.1
"""Of a task's items that one distribution gives, at most."""
ORIGINS = 10
"""Distributions to tell apart, at most."""
ORIGIN_TEXTS = 80
"""Texts of each, at most."""
MIN_ORIGIN_TEXTS = 20

Extracted = TypeVar("Extracted")


@dataclass(frozen=True)
class Candidate:
    """A question and its answer, before any is left out."""

    distribution: str
    file: str
    name: str
    query: str
    document: str
    checked: str
    """Text that must not repeat another item's, nor what was trained on."""


def offline_items(
    kind: str, most: int, packages: Packages, cache_dir: Path
) -> RetrievalItems | LabelledItems:
    """Return the items of a kind, built or from `cache_dir`; `most` queries or texts."""
    known = {
        "format": FORMAT,
        "kind": kind,
        "most": most,
        "sources": [[s.name, s.version] for s in packages.sources],
        "training": digest(sorted(packages.seen.lines)),
    }
    path = cache_dir / "offline" / f"{kind}-{digest(known)}.json"
    if path.is_file():
        return from_plain(json.loads(path.read_text()))
    items = _origin(packages, most) if kind == "origin" else _retrieval(kind, packages, most)
    items.about |= {"rule": packages.rule, "corpus": packages.corpus}
    with replacing(path) as partial:
        partial.write_text(json.dumps(to_plain(items)))
    return items


def _retrieval(kind: str, packages: Packages, most: int) -> RetrievalItems:
    kept, dropped = distinct(_candidates(kind, packages.sources), packages)
    chosen = spread(kept, most)
    dropped["over a tenth of one distribution, or more than asked for"] = len(kept) - len(chosen)
    groups = [c.distribution for c in chosen]
    return RetrievalItems(
        [c.query for c in chosen],
        [c.document for c in chosen],
        [{n: 1} for n in range(len(chosen))],
        groups,
        {"items": len(chosen), "distributions": sorted(set(groups)), "dropped": dict(dropped)},
    )


def distinct(
    candidates: Sequence[Candidate], packages: Packages
) -> tuple[list[Candidate], Counter[str]]:
    """Return the candidates that have one right answer each and were not trained on, in the order
    of a hash of their names, and how many others were dropped why."""
    asked = Counter(c.query.casefold() for c in candidates)
    lines: set[int] = set()
    texts: set[str] = set()
    kept, dropped = [], Counter[str]()
    for candidate in sorted(candidates, key=lambda c: hash_key(c.distribution, c.file, c.name)):
        own, text = line_hashes(candidate.checked), " ".join(candidate.document.split())
        if asked[candidate.query.casefold()] > 1:
            dropped["the question stands more than once"] += 1
        elif text in texts or shared(own, lines):
            dropped["nearly another item"] += 1
        elif packages.seen.repeats(candidate.checked):
            dropped["repeats training text"] += 1
        else:
            texts.add(text)
            lines.update(own)
            kept.append(candidate)
    return kept, dropped


def spread(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """Return up to `most`, of which no distribution gives more than a tenth (five at least)."""
    cap = max(5, round(LARGEST_SHARE * most))
    taken: Counter[str] = Counter()
    chosen = []
    for candidate in candidates:
        if taken[candidate.distribution] < cap:
            taken[candidate.distribution] += 1
            chosen.append(candidate)
    return chosen[:most]


def _candidates(kind: str, sources: Sequence[Source]) -> list[Candidate]:
    if kind == "sections":
        return list(_sections(sources))
    if kind == "long":
        return list(_long(sources))
    return list(_functions(sources, named=kind == "functions-named"))


def _functions(sources: Sequence[Source], *, named: bool) -> Iterator[Candidate]:
    for task, functions in _parsed(sources, documented_functions):
        for f in functions:
            code = f.code if named else f.nameless
            checked = f"{f.docstring}\n{f.code}"
            yield Candidate(task.source, task.file, f.name, f.summary, code, checked)


def _long(sources: Sequence[Source]) -> Iterator[Candidate]:
    for task, found in _parsed(sources, long_document):
        if found is not None:
            query, text = found
            yield Candidate(task.source, task.file, "", query, text, text)


def _sections(sources: Sequence[Source]) -> Iterator[Candidate]:
    for source in sources:
        texts = [("METADATA", source.description)]
        for task in plan_files([source], 0, Counter()):
            if task.path.suffix in (".md", ".rst") and task.path.is_file():
                texts.append((task.file, task.path.read_text(encoding="utf-8", errors="replace")))
        for file, text in texts:
            for heading, body in sections(text):
                yield Candidate(source.name, file, heading, heading, body, body)


def _parsed(
    sources: Sequence[Source], extract: Callable[[bytes], Extracted]
) -> Iterator[tuple[FileTask, Extracted]]:
    """Yield what `extract` finds in each of the distributions' Python files that people wrote."""
    for task in plan_files(sources, 0, Counter()):
        if task.path.suffix != ".py":
            continue
        try:
            source = task.path.read_bytes().replace(b"\r\n", b"\n")
            if reason_to_skip(source) is None:
                yield task, extract(source)
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue  # not there, or not for this Python


def _origin(packages: Packages, most: int) -> LabelledItems:
    """Build the task of telling which distribution a function comes from: half of each one's files
    to learn from, the others to be judged by, its own name hidden."""
    kept, dropped = distinct(_candidates("functions", packages.sources), packages)
    by_source: dict[str, tuple[list[Candidate], list[Candidate]]] = {}
    for candidate in kept:
        side = hash_key("origin", candidate.distribution, candidate.file)[0] % 2
        by_source.setdefault(candidate.distribution, ([], []))[side].append(candidate)
    sizes = {name: min(map(len, sides)) for name, sides in by_source.items()}
    names = [n for n in sorted(sizes, key=lambda n: (-sizes[n], n)) if sizes[n] >= MIN_ORIGIN_TEXTS]
    names = names[:ORIGINS]
    each = min(ORIGIN_TEXTS, most // max(1, len(names)))
    train, test = (
        [(name, c) for name in names for c in by_source[name][side][:each]] for side in (0, 1)
    )
    hide = {source.name: _names(source) for source in packages.sources}
    train_texts = [hide[name].sub("_", c.document) for name, c in train]
    known = set(train_texts)
    hidden = [(hide[name].sub("_", c.document), name, c.file) for name, c in test]
    judged = [row for row in hidden if row[0] not in known]
    return LabelledItems(
        train_texts,
        [name for name, _ in train],
        [text for text, _, _ in judged],
        [name for _, name, _ in judged],
        [f"{name}/{file}" for _, name, file in judged],
        {"items": len(judged), "distributions": names, "dropped": dict(dropped)},
    )


def _names(source: Source) -> re.Pattern[str]:
    """Return a pattern of the distribution's name and of what it is imported as."""
    tops = {file.split("/")[0].removesuffix(".py") for file, _ in source.record}
    names = {top for top in tops if re.fullmatch(r"[A-Za-z_]\w+", top)}
    names |= {source.name, source.name.replace("-", "_"), source.name.replace("-", "")}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))), re.IGNORECASE)


def other_pairs(packages: Packages, sources: Sequence[Source], most: int) -> dict[str, Any]:
    """Return up to `most` pairs of summary and nameless code out of distributions that are in no
    task, those that were trained on if they are known: {"queries", "documents",
    "distributions"}."""
    tested = {source.name for source in packages.sources}
    known = packages.training or {source.name for source in sources}
    allowed = [s for s in sources if s.name in known and s.name not in tested]
    held_out = set[int]()
    for candidate in _functions(packages.sources, named=False):
        held_out.update(line_hashes(candidate.checked))
    pairs: dict[str, Candidate] = {}
    for candidate in _functions(allowed, named=False):
        if not shared(line_hashes(candidate.checked), held_out):
            pairs.setdefault(candidate.query.casefold(), candidate)
        if len(pairs) >= most:
            break
    chosen = list(pairs.values())
    return {
        "queries": [c.query for c in chosen],
        "documents": [c.document for c in chosen],
        "distributions": sorted({c.distribution for c in chosen}),
    }
