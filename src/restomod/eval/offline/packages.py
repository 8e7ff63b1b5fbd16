"""Which installed distributions a model never saw.

In: a run, a checkpoint or any model's folder, perhaps a corpus. Out: the distributions held out of
its corpus, and a test for text that repeats what it was trained on. Where no corpus is known, a
rule on names: the same ones of a machine's distributions every time. `build.py` calls this.

A corpus of data_prep/harvest.py is found through the run's recipe: each training stream's folder
has a manifest.json that names the files it was written from, and the corpus's own manifest beside
them lists distributions on both sides. Only its `heldout_distributions` are used.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.harvest.heldout import HELDOUT_SHARE, NEAR_DUPLICATE_SHARE, line_hashes
from restomod.harvest.installed import STDLIB, Source, find_sources, hash_key
from restomod.tools.runs import run_of, run_recipe

RULE_SHARE = 2 * HELDOUT_SHARE
"""Of the distributions, by a hash of their names, where no corpus says what was held out."""


@dataclass(frozen=True)
class Seen:
    """Hashes of the longer lines that were trained on."""

    lines: frozenset[int] = frozenset()

    def repeats(self, text: str) -> bool:
        """Return whether half of a text's longer lines, or more, were trained on."""
        return shared(line_hashes(text), self.lines)


@dataclass(frozen=True)
class Packages:
    """What tasks may be built from."""

    sources: tuple[Source, ...]
    training: frozenset[str]
    """Distributions that were trained on; empty if no corpus is known."""
    seen: Seen = field(repr=False)
    rule: str
    """How the distributions were chosen, for the results."""
    corpus: str
    """The corpus's folder; empty if none is known."""


def shared(lines: array[int], known: set[int] | frozenset[int]) -> bool:
    """Return whether half of the lines, or more, are known ones; never of a text without any."""
    return bool(lines) and sum(n in known for n in lines) >= NEAR_DUPLICATE_SHARE * len(lines)


def choose_packages(
    model: Path | None, corpus: Path | None, site_packages: list[str] | None = None
) -> Packages:
    """Return the distributions to build tasks from. Raises UserError if `corpus` is none, or if
    nothing that it held out is installed."""
    if corpus is None and model is not None:
        corpus = find_corpus(model)
    elif corpus is not None and not is_corpus(corpus):
        raise UserError(
            f"{corpus}: is no corpus of data_prep/harvest.py, whose manifest.json it lacks"
        )
    sources = find_sources(site_packages)
    if corpus is None:
        names = sorted((s.name for s in sources), key=lambda name: hash_key("heldout", name))
        chosen = frozenset(names[: max(1, round(RULE_SHARE * len(names)))])
        return Packages(
            tuple(s for s in sources if s.name in chosen),
            frozenset(),
            Seen(),
            f"the first {RULE_SHARE:.0%} of the installed distributions by a hash of their names; "
            "no corpus is known, so what the model was trained on was not checked",
            "",
        )
    result = json.loads((corpus / "manifest.json").read_text())["result"]
    held_out = frozenset(result["heldout_distributions"]) - {STDLIB}
    splits = [domain["train"] for domain in result["domains"].values()]
    training = frozenset(name for split in splits for name in split["distributions"])
    both = held_out & training
    if both:
        raise UserError(f"{corpus}: its manifest has {sorted(both)[0]} on both sides")
    found = tuple(source for source in sources if source.name in held_out)
    if not found:
        raise UserError(f"{corpus}: none of its held-out distributions is installed here")
    rule = "held out of the run's corpus; items that repeat its training text are dropped"
    return Packages(found, training, _training_lines(corpus), rule, str(corpus))


def find_corpus(model: Path) -> Path | None:
    """Return the harvested corpus that a run was trained on; None if it was on something else, or
    is no longer there."""
    run = run_of(model)
    if not (run / "config.yaml").is_file():
        run = run.parent  # RUN/exported
    if not (run / "config.yaml").is_file():
        return None
    for stream in run_recipe(run).data.streams.values():
        for file in _written_from(Path(stream.path)):
            corpus = Path(file).parents[1]
            if is_corpus(corpus):
                return corpus
    return None


def is_corpus(folder: Path) -> bool:
    """Return whether harvest.py wrote this folder."""
    return _manifest(folder).get("script") == "harvest.py"


def _written_from(folder: Path) -> list[str]:
    inputs = _manifest(folder).get("inputs", [])
    return [entry["path"] for entry in inputs if isinstance(entry, dict) and "path" in entry]


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _training_lines(corpus: Path) -> Seen:
    lines: set[int] = set()
    for path in sorted(corpus.glob("*/train.jsonl")):
        with path.open(encoding="utf-8") as file:
            for record in file:
                lines.update(line_hashes(json.loads(record)["text"]))
    return Seen(frozenset(lines))
