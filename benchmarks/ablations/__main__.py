"""Ablations on real text at toy scale, with one command: corpus, runs, table and plots.

    python -m benchmarks.ablations                  # or: make ablations
    python -m benchmarks.ablations --seeds 11,12,13,14,15
    python -m benchmarks.ablations --results-only   # of the runs that are there

In: the installed packages' text. Out: benchmarks/results/ablations/{runs.csv,tables.md}, the same
tables in docs/ablations.md, and plots beside it. What was trained is kept in runs/ablations, so
that the same command goes on.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from benchmarks.ablations import corpus, results
from benchmarks.ablations.arms import SEEDS
from benchmarks.ablations.runs import Run, all_runs, train_all
from restomod.errors import UserError
from restomod.train.faults.stopping import REQUEUE_CODE
from restomod.units import parse_slots

OUT = Path("benchmarks/results/ablations")
PAGE = Path("docs/ablations.md")


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="default %(default)s")
    parser.add_argument("--slots", default="1M", help="of a run (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, of one thread")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--results-only", action="store_true", help="train nothing")
    return parser


def main() -> int:
    """Return the exit code: 0, 1 where a run has failed, 2 for a mistake."""
    arguments = make_parser().parse_args()
    runs = all_runs([int(s) for s in arguments.seeds.split(",")], parse_slots(arguments.slots))
    started, done = time.monotonic(), 0

    def on_end(run: Run, code: int) -> None:
        nonlocal done
        done += 1
        minutes = (time.monotonic() - started) / 60
        state = {0: "done", REQUEUE_CODE: "stopped"}.get(code, "failed, see its log")
        print(f"{minutes:5.1f} min  {run.name}: {state} ({done} so far)", flush=True)
        results.write_tables(runs, arguments.runs, OUT)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = 0
        if not arguments.results_only:
            corpus.prepare()
            failed = train_all(runs, arguments.runs, arguments.jobs, on_end)
        results.write(runs, arguments.runs, OUT, PAGE)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    print((OUT / results.TABLES).read_text())
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
