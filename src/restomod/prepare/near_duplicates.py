"""Near duplicates by MinHash: documents that share most of their word n-grams, one of each kept.

In: the documents of numbered units (files, or parts of files), a folder to work in. Out: per unit,
which documents to drop and which one each of them repeats. Datatrove does the MinHash; here are its
steps, as a pipeline's tasks call them, its words without a language's tokenizer, and the rule that
the first document of a cluster stays, in the order of (unit, index). Three steps:

    write_signatures(folder, unit, texts, config)     one task per unit
    match_bucket(folder, bucket, units, config)       one task per bucket, when all units are done
    cluster(folder, units, config)                    one task, when all buckets are done
    read_drops(folder, unit)                          by whoever filters the unit

Tasks of a step may run in any order and anywhere the folder is mounted, twice too: a file appears
whole or not at all, and the result is the same. A document costs (8 x hashes_per_bucket + 4) x
buckets bytes of signatures, 952 at the defaults; memory is that of one unit's share of one bucket
in the first step, a few blocks per unit in the second, and a few hundred bytes per document that
has a near duplicate in the third.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restomod.errors import UserError
from restomod.prepare import minhash
from restomod.prepare.atomic import read_json, replacing, write_json
from restomod.prepare.minhash import NearDuplicateConfig


@dataclass(frozen=True)
class NearDuplicates:
    """What `cluster` found, in documents."""

    documents: int
    """All documents of all units."""
    compared: int
    """Those with as many words as an n-gram has."""
    clusters: int
    """Groups of two documents or more."""
    dropped: int
    """Documents of the groups, but for the first of each."""
    dropped_by_unit: list[int]
    """The same by unit."""


def impossible(config: NearDuplicateConfig) -> list[tuple[str, str]]:
    """Return (key, reason) for values that cannot work, as `load_strict` asks for."""
    problems = []
    for name in ("ngram", "buckets", "hashes_per_bucket"):
        value = getattr(config, name)
        if not 1 <= value <= 1000:
            problems.append((name, f"{value} is outside 1 to 1000"))
    if not 0 <= config.seed < 1 << 32:
        problems.append(("seed", f"{config.seed} is outside 0 to 2**32 - 1"))
    return problems


def write_signatures(
    folder: Path, unit: int, texts: Iterable[str], config: NearDuplicateConfig
) -> int:
    """Write the signatures of a unit's documents, and return how many documents there are."""
    with _partial_folder(folder) as partial:
        counted = minhash.sign(partial, unit, texts, config)
        size = 0
        for file in sorted(partial.glob("bucket_*/*")):
            size = file.stat().st_size
            _publish(file, folder / "signatures" / file.parent.name / file.name)
    compared = size // (8 * config.hashes_per_bucket + 4)
    # Last, so that a unit that has this file has all its signatures.
    write_json(
        _unit_file(folder, unit),
        {"documents": counted, "compared": compared, "config": _identity(config)},
    )
    return counted


def match_bucket(folder: Path, bucket: int, units: int, config: NearDuplicateConfig) -> None:
    """Find the documents of all units whose hashes agree in one of the buckets, 0 to buckets - 1.

    Raises UserError when a unit's signatures are missing, left over or of another configuration.
    """
    _read_units(folder, units, config)
    signatures = folder / "signatures"
    files = len(list((signatures / f"bucket_{bucket:03d}").iterdir()))
    if files != units:
        raise UserError(
            f"{signatures}: holds signatures of {files} units instead of {units}; they are left "
            "from another run, so delete the folder and begin again"
        )
    with _partial_folder(folder) as partial:
        minhash.match(signatures, partial, bucket, config)
        name = minhash.PAIRS.format(bucket)
        _publish(partial / name, folder / "pairs" / name)


def cluster(folder: Path, units: int, config: NearDuplicateConfig) -> NearDuplicates:
    """Join what the buckets found into clusters, and write what `read_drops` reads.

    Documents are in one cluster when a chain of near duplicates joins them. Raises UserError when
    a bucket or a unit is missing.
    """
    described = _read_units(folder, units, config)
    pairs = folder / "pairs"
    names = [minhash.PAIRS.format(bucket) for bucket in range(config.buckets)]
    missing = [bucket for bucket, name in enumerate(names) if not (pairs / name).is_file()]
    if missing:
        raise UserError(f"{pairs}: bucket {missing[0]} is missing; match every bucket first")
    with _partial_folder(folder) as partial:
        minhash.join(pairs, partial, units, config)
        drops, clusters = _drops(partial, units)
        for unit, of_unit in enumerate(drops):
            with replacing(_drops_file(folder, unit)) as file, file.open("wb") as out:
                np.save(out, of_unit)
    by_unit = [len(of_unit) for of_unit in drops]
    return NearDuplicates(
        documents=sum(unit["documents"] for unit in described),
        compared=sum(unit["compared"] for unit in described),
        clusters=clusters,
        dropped=sum(by_unit),
        dropped_by_unit=by_unit,
    )


def read_drops(folder: Path, unit: int) -> np.ndarray:
    """Return the documents of a unit to drop, [n, 3] int64: its index in the unit, sorted, then
    the unit and the index of the document that stays in its place.

    Raises UserError before `cluster` has run.
    """
    file = _drops_file(folder, unit)
    if not file.is_file():
        raise UserError(f"{file}: is missing; the near duplicates have not been clustered yet")
    return np.load(file)


def _drops(clustered: Path, units: int) -> tuple[list[np.ndarray], int]:
    """Turn datatrove's clusters into what to drop, by unit; also return how many clusters there
    are. Datatrove keeps whichever document the tree of a cluster grew from, so its choice is not
    used: its cluster ids count up from 0 in the order of (unit, index), and the first document
    with an id is the one that stays."""
    drops, kept = [], [np.empty((0, 2), np.int64)]
    seen = 0
    for unit in range(units):
        file = clustered / minhash.CLUSTERS.format(unit)
        nodes = np.fromfile(file, "<u4") if file.is_file() else np.empty(0, "<u4")
        index, ids = nodes.reshape(-1, 2).astype(np.int64).T
        before = np.maximum.accumulate(np.concatenate([[seen - 1], ids]))
        first = ids > before[:-1]
        kept.append(np.stack([np.full(first.sum(), unit), index[first]], axis=1))
        seen += int(first.sum())
        drops.append((index[~first], ids[~first]))
    firsts = np.concatenate(kept)
    return [np.column_stack([index, firsts[ids]]) for index, ids in drops], seen


def _identity(config: NearDuplicateConfig) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    del fields["enabled"]
    return fields


def _unit_file(folder: Path, unit: int) -> Path:
    return folder / "units" / f"{unit:06d}.json"


def _drops_file(folder: Path, unit: int) -> Path:
    return folder / "drops" / f"{unit:06d}.npy"


def _read_units(folder: Path, units: int, config: NearDuplicateConfig) -> list[dict[str, Any]]:
    described = []
    for unit in range(units):
        file = _unit_file(folder, unit)
        if not file.is_file():
            raise UserError(f"{file}: is missing; write the signatures of every unit first")
        content = read_json(file)
        if content["config"] != _identity(config):
            raise UserError(
                f"{file}: its signatures were made with {content['config']}, not with "
                f"{_identity(config)}; delete {folder} and begin again"
            )
        described.append(content)
    return described


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """Open a folder for files that are not whole yet, and remove it in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        yield Path(partial)


def _publish(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
