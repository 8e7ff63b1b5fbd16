"""Trains a recipe through kills, signals, damage and a full disk, and compares every step with an
unbroken run's.

    python tests/chaos.py [RECIPE.yaml ...] [key=value ...] --faults 20 --seed 0 --ranks 2 --out DIR

Without a recipe, the demo's is trained, on the data that `make demo` prepares. A seed gives steps
and kinds of the faults, each of which is looked at by itself: exit code, message, and from which
step the run goes on (`tests/chaos_faults.py`). At the end, the run must have logged every step
once, and each of them, as each evaluation, must be equal bit by bit to that of an unbroken run on
as many ranks, which is given the same skip ledger. Exits with 0 if so, with 1 if anything differs
or fewer faults happened than asked for, with 2 if it cannot begin.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from restomod.config import Recipe
from restomod.errors import UserError
from restomod.recipe import check_world, load_recipe
from restomod.strict import split_words
from restomod.timeline import Timeline
from restomod.train.faults.ledger import FILE as LEDGER
from tests.chaos_faults import Fault, possible_kinds
from tests.conftest import metrics  # which gives each rank one thread
from tests.integration.test_resume import exactly
from tests.ordeal import Broken, Ordeal
from tests.small_disk import SmallDisk

DEMO = (
    str(Path(__file__).resolve().parents[1] / "yamls/recipes/demo.yaml"),
    "phases.0.batch_rows=2",  # a row for each rank
    "checkpoint.every_steps=10",
    "evaluation.every_steps=50",
    "evaluation.rows=4",
)
SPIKES = (
    "faults.spikes.action=rollback",
    "faults.spikes.window_steps=8",
    "faults.spikes.threshold=2",
    "faults.spikes.max_rollbacks=1000",
)
"""Makes spikes out of ordinary losses, so that there are roll-backs, and a ledger to keep."""
LARGEST_PAUSE_S = 0.2
"""Of the random time between a step and its fault, so that faults hit all parts of a step."""


@dataclass
class Happened:
    """A fault, and what came of it."""

    step: int
    kind: str
    what: str
    went_on: str
    seconds: float
    """From the fault until the run goes on."""

    def line(self, number: int) -> str:
        return (
            f"{number:>3}  {self.step:>5}  {self.kind:<32}  {self.went_on:>12}  "
            f"{self.seconds:>7.1f}  {self.what}"
        )


HEAD = f"  #   step  {'fault':<32}  {'goes on from':>12}  seconds  what happened"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="RECIPE.yaml|key=value")
    parser.add_argument("--faults", type=int, default=20, help="faults to inject")
    parser.add_argument("--seed", type=int, default=0, help="of steps and kinds of the faults")
    parser.add_argument("--ranks", type=int, default=2, help="processes to train with")
    parser.add_argument("--out", type=Path, required=True, help="new folder for runs and logs")
    parsed = parser.parse_intermixed_args(arguments)
    words = parsed.words
    if all("=" in word for word in words):
        words = [*DEMO, *words]
    try:
        return chaos(words, parsed.faults, parsed.seed, parsed.ranks, parsed.out.absolute())
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def chaos(words: list[str], faults: int, seed: int, ranks: int, out: Path) -> int:
    """Train with faults and without, compare, and tell; return the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UserError(f"--out {out}: the folder is not empty")
    words = [*SPIKES, *words, "logging.every_steps=1", "logging.wandb.mode=disabled"]
    recipe = _read(words, ranks)
    steps = Timeline(recipe.trained_phases).end_step
    draw = random.Random(seed)
    with SmallDisk(out / "disk") as disk:
        kinds, left_out = possible_kinds(recipe, disk)
        for kind, why in left_out.items():
            _say(f"left out: {kind}: {why}")
        plan = _plan(draw, list(kinds), faults, steps, recipe.checkpoint.every_steps)
        _say(f"{steps} steps on {ranks} ranks, {faults} faults of {len(kinds)} kinds, seed {seed}")
        ordeal = Ordeal(words, recipe, ranks, out, disk.folder / "chaotic", disk, draw)
        happened = _suffer(ordeal, [(step, kind, kinds[kind]) for step, kind in plan])
        chaotic = out / "chaotic"
        if ordeal.folder.exists():
            shutil.copytree(ordeal.folder, chaotic, ignore=shutil.ignore_patterns("checkpoints"))
    problems = ordeal.problems
    if ordeal.finished:
        unbroken = ordeal.train_unbroken(chaotic / LEDGER)
        problems += differences(chaotic, unbroken, steps)
        entries = len(metrics(unbroken, "skipped_step"))
        _say(f"the unbroken run skipped {entries} steps by the ledger that it was given")
    return verdict(happened, faults, steps, problems)


def _read(words: list[str], ranks: int) -> Recipe:
    recipe = load_recipe(*split_words(words))
    check_world(recipe, ranks)
    for stream in recipe.data.streams.values():
        if "://" not in stream.path and not Path(stream.path, "index.json").is_file():
            raise UserError(f"{stream.path}: no data there; `make demo` prepares the demo's")
    return recipe


def _plan(
    draw: random.Random, kinds: list[str], faults: int, steps: int, every: int
) -> list[tuple[int, str]]:
    """Return steps in order and kinds: all kinds come before one comes again."""
    between = range(2 * every + 1, steps - 2 * every)
    if len(between) < faults:
        raise UserError(f"{steps} steps are too few for {faults} faults: raise phases.N.slots")
    drawn: list[str] = []
    while len(drawn) < faults:
        drawn += draw.sample(kinds, len(kinds))
    return list(zip(sorted(draw.sample(between, faults)), drawn, strict=False))


def _suffer(ordeal: Ordeal, plan: list[tuple[int, str, Fault]]) -> list[Happened]:
    """Train to the end, with each fault at its step; return those that happened."""
    happened: list[Happened] = []
    ordeal.start()
    _say(HEAD)
    try:
        for step, kind, fault in plan:
            if not ordeal.reach(step):
                break  # the run is over
            time.sleep(ordeal.draw.random() * LARGEST_PAUSE_S)
            began, at = time.monotonic(), ordeal.last_step()
            outcome = fault(ordeal)
            went_on = "-"
            if ordeal.ranks.ended():
                went_on = f"step {ordeal.go_on(kind, outcome)}"
            row = Happened(at, kind, outcome.what, went_on, time.monotonic() - began)
            happened.append(row)
            _say(row.line(len(happened)))
        ordeal.finish()
    except (Broken, TimeoutError) as error:
        ordeal.problems.append(f"{error}\n{ordeal.ranks.printed()[-4000:]}")
    finally:
        ordeal.ranks.kill()
    return happened


def differences(chaotic: Path, unbroken: Path, steps: int) -> list[str]:
    """Return in what two runs of so many steps differ, and in what the second was not unbroken."""
    problems = []
    for folder in (chaotic, unbroken):
        if [line["step"] for line in metrics(folder)] != list(range(1, steps + 1)):
            problems.append(f"{folder.name}: the steps logged are not 1 to {steps}, once each")
    if metrics(unbroken, "resume") or metrics(unbroken, "rollback"):
        problems.append("the unbroken run went back to a checkpoint")
    ours, theirs = exactly(chaotic), exactly(unbroken)
    problems += [
        f"step {step}: {key} is {ours[step][key]}, not {value}"
        for step in sorted(ours.keys() & theirs.keys())
        for key, value in theirs[step].items()
        if ours[step][key] != value
    ]
    for event, keys in (
        ("eval", ("step", "domains")),
        ("skipped_step", ("step", "reason", "data_digest")),
    ):
        mine, other = (
            [[line[key] for key in keys] for line in metrics(folder, event)]
            for folder in (chaotic, unbroken)
        )
        if mine != other:
            problems.append(f"lines of {event} differ: {mine} is not {other}")
    return problems


def verdict(happened: list[Happened], asked: int, steps: int, problems: list[str]) -> int:
    """Say what was found; return the exit code."""
    for problem in problems:
        _say(f"problem: {problem}")
    kinds = len({row.kind for row in happened})
    text = f"{len(happened)} faults of {kinds} kinds"
    if len(happened) < asked:
        _say(f"FAILED: {text}, {asked} were asked for")
    elif problems:
        _say(f"FAILED: {text}, {len(problems)} problems")
    else:
        _say(
            f"PASSED: {text}; {steps} steps logged once each, losses, data digests and evaluations "
            "bit-equal to the unbroken run's"
        )
        return 0
    return 1


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the ranks and the disk, too
    sys.exit(main())
