"""A fine-tuning task of a suite: a grid searched with one seed, its best point run with all.

In: a task's settings and grid, the model, where to write. Out: a score for each seed, and the model
that other tasks may start from. Every point is a folder of `restomod finetune`, so a stopped search
goes on, and only the best point's model stays on disk. `eval/` calls this for tasks of the kind
finetune (`yamls/suites/glue.yaml`).
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.finetune.config import FinetuneConfig, load_finetune
from restomod.finetune.data import load_tables
from restomod.finetune.run import MODEL, Score, finetune
from restomod.interrupts import Interrupts
from restomod.prepare.atomic import write_json
from restomod.recipe import flatten

log = logging.getLogger(__name__)

GRID = "grid.json"
Point = dict[str, Any]


@dataclass
class GridResult:
    """What a search came to."""

    point: Point
    """The best combination."""
    scores: list[Score]
    """Its scores, one a seed."""
    tried: list[tuple[Point, float]]
    """Every combination and its score with the first seed."""
    model: Path
    """The best point's model, of its best seed."""


def run_grid(
    name: str,
    settings: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    model: Path,
    out: Path,
    seeds: Sequence[int],
    interrupts: Interrupts,
    data_dir: Path | None = None,
) -> GridResult:
    """Search a grid, or go on with it.

    `settings` are those of `restomod finetune`, nested or dotted, without model, out and seeds;
    `grid` has dotted keys and lists of values. A relative `data.path` is looked for in `data_dir`,
    by its whole name and by its last part, before the hub is asked. Raises UserError naming the
    task, and Stopped.
    """
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    plain = flatten(dict(settings))
    plain["data.path"] = _place(str(plain.get("data.path", "")), data_dir)
    configs = [
        _config(name, {**plain, **point, "model": str(model), "out": str(out / _slug(point))})
        for point in points
    ]
    best = 0
    values: list[float] = []
    for n, config in enumerate(configs):
        log.info("%s: point %d of %d: %s", name, n + 1, len(points), _slug(points[n]))
        config.seeds = [seeds[0]]
        values.append(_run(name, config, interrupts)[0].value)
        loser = n
        if values[n] > values[best]:
            best, loser = n, best
        if loser != best:
            shutil.rmtree(Path(configs[loser].out) / MODEL, ignore_errors=True)
    winner = configs[best]
    winner.seeds = list(seeds)
    scores = _run(name, winner, interrupts)
    tried = list(zip(points, values, strict=True))
    result = GridResult(points[best], scores, tried, Path(winner.out) / MODEL)
    write_json(
        out / GRID,
        {
            "task": name,
            "best": result.point,
            "seeds": [asdict(score) for score in scores],
            "tried": [{"point": point, scores[0].metric: value} for point, value in tried],
        },
    )
    return result


def check_task(name: str, settings: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> None:
    """Raise UserError if a task's settings or grid cannot work, before anything is trained."""
    taken = {"model", "out", "seeds"} & {*flatten(dict(settings)), *grid}
    if taken:
        raise UserError(f"task {name}: {', '.join(sorted(taken))}: the suite sets them itself")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"task {name}: grid: {key}: is no list of values")
        for value in values:
            _config(name, {**flatten(dict(settings)), key: value, "model": "model", "out": "out"})


def check_data(name: str, settings: Mapping[str, Any], data_dir: Path | None) -> None:
    """Raise UserError if a task's data is not to be had: before other tasks are trained for
    hours."""
    plain = flatten(dict(settings))
    plain["data.path"] = _place(str(plain.get("data.path", "")), data_dir)
    config = _config(name, {**plain, "model": "model", "out": "out"})
    try:
        load_tables(config.data)
    except UserError as error:
        raise UserError(f"task {name}: {error}") from error


def _run(name: str, config: FinetuneConfig, interrupts: Interrupts) -> list[Score]:
    try:
        return finetune(config, interrupts)
    except UserError as error:
        raise UserError(f"task {name}: {error}") from error


def _config(name: str, values: Mapping[str, Any]) -> FinetuneConfig:
    words = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    try:
        return load_finetune([], words)
    except UserError as error:
        problem = str(error).replace("command line: ", "")
        raise UserError(f"task {name}: {problem}") from error


def _place(path: str, data_dir: Path | None) -> str:
    for place in (path, Path(path).name) if data_dir and path else ():
        assert data_dir is not None
        if (data_dir / place).exists():
            return str(data_dir / place)
    return path


def _slug(point: Point) -> str:
    return ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items()) or "only"
