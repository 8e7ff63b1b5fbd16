"""What a job says of its output: manifest.json, rejects.jsonl, and examples for the data card.

In: the results of all tasks. Out: the manifest, in the form that `card.CardManifest` describes and
with more beside it, and the list of what was rejected, with file and line. Both are the same
whoever did the work. `pipeline.py` is the caller.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restomod.prepare.atomic import ESCAPED
from restomod.prepare.config import Preparation, identity
from restomod.prepare.documents import EXAMPLES, STEPS, origins, rejects_file
from restomod.prepare.duplicates import drops, kept_place
from restomod.prepare.job import FORMAT, Job
from restomod.prepare.pieces import Unit
from restomod.provenance import versions

SHOWN_PER_REASON = 2
NOT_COUNTED = ("empty_line", "empty_document")
"""Reasons that are no fault of the input's form."""
FILE_REASONS = ("broken_file", "unreadable_file")
VERSIONS = ("restomod", "tokenizers", "mosaicml-streaming", "pyarrow", "zstandard", "datatrove")


@dataclass
class Results:
    """What the tasks of a job returned, by unit."""

    units: list[Unit]
    read: list[dict[str, Any]]
    parts: int = 1
    """Into how many parts hashes were cut."""
    exact: list[int] = field(default_factory=list)
    """Exact duplicates by unit; empty if none were looked for."""
    near: list[int] = field(default_factory=list)
    """The same for near duplicates."""
    tokens: list[dict[str, Any]] = field(default_factory=list)

    def of_source(self, name: str) -> list[int]:
        """Return the numbers of a source's units."""
        return [unit.number for unit in self.units if unit.source == name]


def stages(results: Results, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return documents through the stages, summed over some units."""
    found = []
    for name in STEPS:
        steps = [results.read[n]["steps"][name] for n in numbers]
        stage: dict[str, Any] = {"name": name}
        for key in ("documents_in", "documents_out", "text_bytes_out"):
            stage[key] = sum(step[key] for step in steps)
        for key in ("dropped", "altered"):
            counts: Counter[str] = Counter()
            for step in steps:
                counts.update(step[key])
            stage[key] = dict(sorted(counts.items()))
        found.append(stage)
    left = found[-1]["documents_out"]
    for name, reason, by_unit in (
        ("exact duplicates", "exact_duplicate", results.exact),
        ("near duplicates", "near_duplicate", results.near),
        ("tokenise", "no_tokens", [result["no_tokens"] for result in results.tokens]),
    ):
        if not by_unit:
            continue
        dropped = sum(by_unit[n] for n in numbers)
        stage = {"name": name, "documents_in": left, "documents_out": left - dropped}
        stage["dropped"] = {reason: dropped} if dropped else {}
        left -= dropped
        found.append(stage)
    if results.tokens:
        found[-1]["text_bytes_out"] = sum(
            results.tokens[n][split]["text_bytes"]
            for n in numbers
            for split in ("train", "heldout")
        )
    return found


def bad_input(results: Results) -> tuple[int, Counter[str], Counter[str]]:
    """Return records, by reason those among them that could not be read, and those that hold
    nothing."""
    bad: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    records = 0
    for result in results.read:
        records += result["steps"]["read"]["documents_in"]
        for reason, count in result["steps"]["read"]["dropped"].items():
            (empty if reason in NOT_COUNTED else bad)[reason] += count
    return records, bad, empty


def broken_files(job: Job, results: Results) -> set[str]:
    """Return the paths of files that could not be read to their end."""
    found = set()
    for unit in results.units:
        dropped = results.read[unit.number]["steps"]["read"]["dropped"]
        if any(dropped.get(reason) for reason in FILE_REASONS):
            for entry in _entries(job, unit.number):
                if entry["reason"] in FILE_REASONS:
                    found.add(unit.pieces[entry["piece"]].file.path)
    return found


def _entries(job: Job, unit: int) -> Iterator[dict[str, Any]]:
    with rejects_file(job, unit).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


class Places:
    """Turns (unit, piece, number in the piece) into file and line."""

    def __init__(self, results: Results) -> None:
        self._units = results.units
        self._before: list[list[int]] = []
        lines: dict[str, int] = {}
        for unit in results.units:
            before = []
            for piece, count in zip(unit.pieces, results.read[unit.number]["lines"], strict=True):
                key = f"{unit.source}\0{piece.file.path}"
                if not piece.begin:
                    lines[key] = 0
                before.append(lines[key])
                lines[key] += count
            self._before.append(before)

    def __call__(self, unit: int, piece: int, number: int) -> tuple[str, int]:
        """Return (path, line); line 0 stands for the whole file."""
        path = self._units[unit].pieces[piece].file.path
        return path, self._before[unit][piece] + number if number else 0


def write_rejects(job: Job, results: Results, path: Path) -> list[dict[str, Any]]:
    """Write everything that was rejected, a JSON object a line; return examples for the card."""
    places = Places(results)
    shown: Counter[tuple[str, str]] = Counter()
    examples = []
    with path.open("w", encoding="utf-8", errors=ESCAPED) as out:
        for entry in _all_rejects(job, results, places):
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
            key = (entry["stage"], entry["reason"])
            shown[key] += 1
            if shown[key] <= SHOWN_PER_REASON:
                origin = f"{entry['file']}:{entry['line']}" if entry["line"] else entry["file"]
                examples.append({**entry, "origin": origin})
    return examples


def _all_rejects(job: Job, results: Results, places: Places) -> Iterator[dict[str, Any]]:
    shown: Counter[tuple[str, str]] = Counter()
    for unit in results.units:
        for entry in [*_entries(job, unit.number)]:
            path, line = places(unit.number, entry.pop("piece"), entry.pop("line"))
            yield {"source": unit.source, "file": path, "line": line, **entry}
        for stage, counts in (
            ("exact duplicates", results.exact),
            ("near duplicates", results.near),
        ):
            if counts and counts[unit.number] and shown[unit.source, stage] < EXAMPLES:
                for entry in _duplicates(job, results, places, unit.number, stage):
                    shown[unit.source, stage] += 1
                    yield {"source": unit.source, **entry}


def _duplicates(
    job: Job, results: Results, places: Places, unit: int, stage: str
) -> Iterator[dict[str, Any]]:
    """Yield a few of a unit's duplicates, with what they repeat."""
    documents = [result["documents"] for result in results.read]
    exact, near = drops(job, unit, documents[unit], results.parts)
    near_stage = stage == "near duplicates"
    for index, other, kept in (near if near_stage else exact)[:EXAMPLES].tolist():
        if near_stage:
            kept = kept_place(job, other, documents[other], results.parts, kept)
        file, line = places(unit, *origins(job, unit, [index])[index])
        path, other_line = places(other, *origins(job, other, [kept])[kept])
        yield {
            "file": file,
            "line": line,
            "stage": stage,
            "reason": stage.replace(" ", "_")[:-1],
            "detail": f"repeats {path}:{other_line}" if other_line else f"repeats {path}",
        }


def make_manifest(
    job: Job,
    results: Results,
    inputs: list[dict[str, Any]],
    skipped: dict[str, dict[str, int]],
    tokenizer: dict[str, Any],
    datasets: dict[str, dict[str, dict[str, Any]]],
    examples: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return the manifest. `datasets` holds restomod.json's content by source and split."""
    sources = []
    for name, config in job.recipe.sources.items():
        splits = datasets.get(name, {})
        lengths: Counter[str] = Counter()
        for split in splits.values():
            lengths.update(split["length_histogram"])
        sources.append(
            {
                "name": name,
                "domain": config.domain or name,
                "licence": config.licence,
                "url": config.url,
                "description": config.description,
                "documents": sum(split["documents"] for split in splits.values()),
                "tokens": sum(split["tokens"] for split in splits.values()),
                "text_bytes": sum(split["text_bytes"] for split in splits.values()),
                "length_histogram": dict(sorted(lengths.items(), key=lambda item: int(item[0]))),
                "splits": {
                    split: {key: entry[key] for key in ("documents", "tokens", "text_bytes")}
                    for split, entry in splits.items()
                },
                "stages": stages(results, results.of_source(name)),
                "skipped_files": skipped.get(name, {}),
            }
        )
    everything = [unit.number for unit in results.units]
    return {
        "format": FORMAT,
        "name": job.recipe.name,
        "description": job.recipe.description,
        "sources": sources,
        "stages": stages(results, everything),
        "tokenizer": tokenizer,
        "rejects": examples,
        "notes": _notes(job.recipe, datasets, sources),
        "versions": versions(VERSIONS),
        "recipe": identity(job.recipe),
        "inputs": inputs,
    }


def _notes(
    recipe: Preparation,
    datasets: dict[str, dict[str, dict[str, Any]]],
    sources: list[dict[str, Any]],
) -> list[str]:
    notes = [note for source in sources if (note := mostly_dropped(source))]
    for name in recipe.sources:
        splits = datasets.get(name, {})
        if "train" not in splits:
            notes.append(f"{name}: no document is left to train on.")
        if "heldout" not in splits and recipe.heldout.share > 0:
            notes.append(
                f"{name}: no document is held out; there are too few for heldout.share "
                f"{recipe.heldout.share:g}. Raise it, or train without this source's heldout."
            )
    return notes


def mostly_dropped(source: dict[str, Any]) -> str:
    """Return a note on a source that lost more than half of its documents; empty otherwise."""
    of_stages = source["stages"]
    read, kept = of_stages[0]["documents_in"], of_stages[-1]["documents_out"]
    if 2 * kept >= read:
        return ""
    dropped: Counter[str] = Counter()
    for stage in of_stages:
        dropped.update(stage["dropped"])
    reason, number = dropped.most_common(1)[0]
    return (
        f"{source['name']}: {read - kept:,} of {read:,} documents were dropped, {number:,} of them "
        f"as {reason}."
    )
