"""How long a resume takes at step 1,000,000 and at step 10, in the data path.

    python -m benchmarks.data.resume

Two lanes run a million rows, one a step, through every epoch, draw and packing decision: small rows
of short chunks, of which two thousand wait. Then fresh processes go on from the states of both
steps, in turn: they open data and tokenizer, make a loader from the state, and are timed until its
first batch, and for the 100 steps after it. Weights and moments are as many bytes at any step, and
are not in it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.data.documents import recipe_of, write_streams
from benchmarks.record import Report, parser_of
from restomod.config import Recipe

EARLY, LATE = 10, 1_000_000
LANES = 2
DOCUMENTS = 100_000


def recipe(folder: Path, root: Path) -> Recipe:
    """Return a recipe of one row a step, with buffers of about 1,100 chunks a lane."""
    made = recipe_of(folder, root, 256, lanes=LANES, workers=0, buffer_rows=256)
    phase = made.phases[0]
    phase.sequence_length = 64
    phase.batch_rows = phase.micro_batch_rows = 1
    phase.slots = str(2 * LATE * phase.row_tokens)
    return made


def run_lane(given: tuple[int, Recipe, tuple[int, ...]]) -> list[dict[str, Any]]:
    """Return the states of a lane after each number of rows."""
    from restomod.data.lanes import Lane, LaneSetting
    from restomod.data.sources import open_sources
    from restomod.data.state import LaneState

    number, made, stops = given
    sources = open_sources(made)
    setting = LaneSetting.of(
        made.seed, made.data, made.phases[0], 0, sources.streams, sources.tokenizer
    )
    lane, state = Lane(number, setting), LaneState(sorted(sources.streams))
    states = []
    for row in range(1, max(stops) + 1):
        delta = lane.next_row().delta
        assert delta is not None
        state.apply(delta)
        if row in stops:
            states.append(state.plain())
    return states


def go_on(given: tuple[Recipe, dict[str, Any]]) -> tuple[float, float]:
    """Return the seconds to the first batch after a state, and of the 100 steps after it."""
    from restomod.data.loader import Loader
    from restomod.data.sources import open_sources

    made, state = given
    started = time.perf_counter()
    batches = iter(Loader(made, open_sources(made), state=state))
    next(batches)
    first = time.perf_counter()
    for _ in range(100):
        next(batches)
    return first - started, time.perf_counter() - first


def compare(report: Report, folder: Path, late: int, documents: int, rounds: int) -> None:
    """Resume at both steps in turn."""
    made = recipe(folder, write_streams(folder, documents, "raw"))
    context = multiprocessing.get_context("spawn")
    began = time.perf_counter()
    with context.Pool(LANES) as pool:
        stops = EARLY // LANES, late // LANES
        lanes = pool.map(run_lane, [(lane, made, stops) for lane in range(LANES)])
    took = time.perf_counter() - began
    states = {
        step: {"rows": step, "lanes": {lane: states[n] for lane, states in enumerate(lanes)}}
        for n, step in enumerate((EARLY, late))
    }
    times: dict[int, list[tuple[float, float]]] = {EARLY: [], late: []}
    for _ in range(rounds):
        for step, state in states.items():
            with context.Pool(1) as pool:
                times[step].append(pool.apply(go_on, ((made, state),)))
    table = report.table(
        f"resume: {documents:,} documents, {late:,} steps of a row in {took:.0f} s; medians of "
        f"{rounds}",
        "at step",
        "chunks that wait",
        "to the first batch",
        "the next 100",
    )
    middle = {
        step: [statistics.median(x) for x in zip(*t, strict=True)] for step, t in times.items()
    }
    for step, (first, others) in middle.items():
        waiting = sum(len(lane["waiting"]) for lane in states[step]["lanes"].values())
        table.row(f"{step:,}", f"{waiting:,}", f"{first:.3f} s", f"{others:.3f} s")
    report.figures["late / early"] = middle[late][0] / middle[EARLY][0]
    report.figures["early, s"], report.figures["late, s"] = middle[EARLY][0], middle[late][0]


def main() -> None:
    options = parser_of(__doc__).parse_args()
    late, documents, rounds = (2000, 3000, 1) if options.quick else (LATE, DOCUMENTS, 7)
    with tempfile.TemporaryDirectory() as folder, Report(options) as report:
        compare(report, Path(folder), late, documents, rounds)


if __name__ == "__main__":
    main()
