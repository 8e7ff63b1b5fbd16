"""`restomod inspect`: what each step of a recipe trains on, found without training.

In: a recipe and a range of steps. Out: a line for each. It begins at the run's last checkpoint
before them. `commands.py` calls it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from restomod.config import Recipe
from restomod.data.loader import Loader
from restomod.data.sources import Sources, open_sources
from restomod.errors import UserError
from restomod.timeline import Origin, Timeline
from restomod.train.guards import fingerprint, state_before
from restomod.train.start import find_start
from restomod.units import counted


def inspect_steps(
    recipe: Recipe, first: int, last: int, world_size: int, as_json: bool
) -> Iterator[str]:
    """Yield one line for each step in first .. last - 1, with the ranks imitated in one process.

    Where the recipe's run has a checkpoint before them, written with the same recipe and data, it
    goes on from there; otherwise it steps through what comes before.

    Fields: step, phase, rows, tokens (slots that are not padding), documents (chunks),
    packing_efficiency, data_digest (as metrics.jsonl has it) and mixture (share of tokens by
    stream).
    """
    sources = open_sources(recipe, world_size)
    timeline, begun, state = _place_before(recipe, sources, first)
    if first < begun:
        raise UserError(
            f"--steps {first}:{last}: the run begins at step {begun}, with another's checkpoint; "
            f"inspect that run, or steps from {begun} on"
        )
    loaders = [
        Loader(recipe, sources, rank, world_size, state, timeline=timeline)
        for rank in range(world_size)
    ]
    batches = [iter(loader) for loader in loaders]
    for step in range(begun, last):
        for batch in batches:
            next(batch)
        if step < first:
            continue
        facts = [loader.facts for loader in loaders]
        rows, slots = sum(f.rows for f in facts), sum(f.slots for f in facts)
        tokens, documents = sum(f.real_tokens for f in facts), sum(len(f.lengths) for f in facts)
        stream_tokens = np.sum([f.stream_tokens for f in facts], axis=0)
        digest = sum(f.digest for f in facts) % 2**64
        line = {
            "step": step + 1,
            "phase": timeline.at(step).phase.name,
            "rows": rows,
            "tokens": tokens,
            "documents": documents,
            "packing_efficiency": tokens / slots,
            "data_digest": f"{digest:016x}",
            "mixture": {
                name: float(count / max(stream_tokens.sum(), 1))
                for name, count in zip(loaders[0].streams, stream_tokens, strict=True)
            },
        }
        yield json.dumps(line) if as_json else _as_text(line)


def _place_before(
    recipe: Recipe, sources: Sources, step: int
) -> tuple[Timeline, int, dict[str, Any] | None]:
    """Return the run's timeline, and the steps that are done and the loader's state at the last
    checkpoint at or before `step`."""
    found = state_before(recipe.run_folder, step, recipe, fingerprint(sources))
    if found:
        manifest, state = found
        timeline = Timeline(recipe.trained_phases, Origin(**manifest["origin"]))
        return timeline, manifest["step"], state
    if recipe.start.fork or recipe.start.checkpoint:
        start = find_start(recipe, sources, None)
        return start.timeline, start.step, start.loader_state()
    return Timeline(recipe.trained_phases), 0, None


def _as_text(line: dict) -> str:
    mixture = ", ".join(f"{name} {share:.1%}" for name, share in line["mixture"].items())
    return (
        f"{line['phase']} step {line['step']}: {counted(line['rows'], 'row')}, "
        f"{line['tokens']:,} tokens of {counted(line['documents'], 'document')}, "
        f"{line['packing_efficiency']:.2%} full, {mixture}, digest {line['data_digest']}"
    )
