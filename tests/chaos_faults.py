"""The faults of `tests/chaos.py`: what is done to a run, and what it must do then.

A fault is a function of an `Ordeal`, the run with all that happens to it. It returns when the ranks
have ended, or go on by themselves, and says what the next start must do.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from restomod.config import Recipe
from restomod.train.manifest import MANIFEST, STATE, checkpoint_folder, local_steps, verify
from restomod.train.resume import REJECTED
from restomod.train.stopping import REQUEUE, REQUEUE_CODE, STOP
from tests.conftest import metrics
from tests.ranks import Ranks
from tests.small_disk import SmallDisk

LIMIT_S = 180.0
"""For ranks to end, to start, or to finish another step."""
FROZEN_S = 2.0


class Broken(Exception):
    """The run did what it must not, and cannot be tried further."""


@dataclass
class Outcome:
    """What came of a fault, and what the next start must do."""

    what: str
    step: int | None = None
    """From which the run must go on; None: from the newest whole checkpoint's."""
    says: str = ""
    """What it must print."""


class Ordeal:
    """A run, the ranks that train it at the moment, and what was found wrong."""

    def __init__(
        self,
        words: list[str],
        recipe: Recipe,
        world_size: int,
        out: Path,
        folder: Path,
        disk: SmallDisk,
        draw: random.Random,
    ) -> None:
        self.folder = folder
        self.world_size = world_size
        self.disk = disk
        self.draw = draw
        self.data = {name: out / "data" / name for name in _linkable(recipe)}
        """Folders of links to the files of streams."""
        self.sources = {name: Path(recipe.data.streams[name].path).absolute() for name in self.data}
        self.cache = out / "cache"
        self.problems: list[str] = []
        self.finished = False
        """Whether the run has come to its end."""
        self.ranks: Ranks
        self._out = out
        self._starts = 0
        for name in self.data:
            self.link(name)
        streams = [f"data.streams.{name}.path={path}" for name, path in self.data.items()]
        self._words = [*words, f"cache_dir={self.cache}", *streams]

    def link(self, stream: str) -> None:
        """Make (again) the links to all files of a stream."""
        self.data[stream].mkdir(parents=True, exist_ok=True)
        for file in self.sources[stream].iterdir():
            link = self.data[stream] / file.name
            if not link.is_symlink():
                link.symlink_to(file)

    def start(self, folder: Path | None = None) -> None:
        folder = folder or self.folder
        self._starts += 1
        log = self._out / "logs" / f"{self._starts:03}.txt"
        log.parent.mkdir(exist_ok=True)
        here = f"runs_dir={folder.parent}", f"run_name={folder.name}"
        self.ranks = Ranks([*self._words, *here], self.world_size, log)

    def train_unbroken(self, ledger: Path) -> Path:
        """Train without faults, by the same skip ledger; return the run folder."""
        folder = self._out / "runs" / "unbroken"
        folder.mkdir(parents=True)
        if ledger.exists():
            shutil.copy(ledger, folder)
        self.start(folder)
        try:
            code = self.ranks.wait(LIMIT_S * 10)
        finally:
            self.ranks.kill()
        if code != 0:
            self.problems.append(f"the unbroken run: exit code {code}\n{self.ranks.printed()}")
        return folder

    def expect(self, holds: bool, text: str) -> None:
        if not holds:
            self.problems.append(text)

    def last_step(self) -> int:
        """Return the last step that was logged."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            lines = file.read().split(b"\n")[1:-1]
        steps = [json.loads(line)["step"] for line in lines if b'"event": "train"' in line]
        return steps[-1] if steps else 0

    def checkpoints(self) -> list[int]:
        """Return the steps of the checkpoints that count, newest first."""
        steps = local_steps(self.folder)
        return [s for s in steps if (checkpoint_folder(self.folder, s) / MANIFEST).is_file()]

    def whole(self) -> list[int]:
        """Return the steps of the checkpoints in which nothing is damaged, newest first."""
        steps = self.checkpoints()
        return [s for s in steps if not verify(checkpoint_folder(self.folder, s))[0]]

    def unfinished(self) -> set[int]:
        """Return the steps of the checkpoints that are being written, or never were to the end."""
        return {
            step
            for step in local_steps(self.folder)
            if not any((checkpoint_folder(self.folder, step) / name).is_file()
                       for name in (MANIFEST, REJECTED))
        }  # fmt: skip

    def reach(self, step: int) -> bool:
        """Wait until a step is logged and there are two checkpoints; return whether the run still
        goes on then."""
        last, since = -1, time.monotonic()
        while (now := self.last_step()) < step or len(self.checkpoints()) < 2:
            if self.ranks.ended():
                return False
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() > since + LIMIT_S:
                raise Broken(f"no step after {last} in {LIMIT_S:g} s")
            time.sleep(0.01)
        return not self.ranks.ended()

    def go_on(self, kind: str, outcome: Outcome) -> int:
        """Start again and check that the run goes on from where it must; return that step."""
        step = self.whole()[0] if outcome.step is None else outcome.step
        began = f"resuming from {checkpoint_folder(self.folder, step)}"
        self.start()
        end = time.monotonic() + LIMIT_S
        while "resuming from " not in (printed := self.ranks.printed()):
            if self.ranks.ended() or time.monotonic() > end:
                raise Broken(f"after `{kind}`, the run did not go on: {self.ranks.codes}")
            time.sleep(0.02)
        self.expect(began in printed, f"after `{kind}`: `{began}` is not in\n{printed}")
        self.expect(outcome.says in printed, f"after `{kind}`: `{outcome.says}` not in\n{printed}")
        found = metrics(self.folder, "resume")[-1]["from_step"]
        self.expect(found == step, f"after `{kind}`: went on from step {found}, not {step}")
        return found

    def finish(self) -> None:
        """Wait for the run's end, which must be a good one."""
        self.reach(10**12)
        if set(self.ranks.codes) != {0}:
            raise Broken(f"the run ended with {self.ranks.codes} where nothing was done to it")
        self.finished = True

    def wait(self) -> str:
        """Wait until all ranks have ended; return with what they did."""
        self.ranks.wait(LIMIT_S)
        late = ", one of them by SIGKILL after its grace" if self.ranks.overdue else ""
        return f"exit codes {', '.join(map(str, self.ranks.codes))}{late}"


Fault = Callable[[Ordeal], Outcome]


def kill_one(ordeal: Ordeal) -> Outcome:
    rank = ordeal.draw.randrange(ordeal.world_size)
    ordeal.ranks.send(signal.SIGKILL, [rank])
    return Outcome(ordeal.wait())


def kill_all(ordeal: Ordeal) -> Outcome:
    ordeal.ranks.kill()
    return Outcome(ordeal.wait())


def kill_in_save(ordeal: Ordeal) -> Outcome:
    before = ordeal.unfinished()
    end = time.monotonic() + LIMIT_S
    while not (written := ordeal.unfinished() - before):
        if ordeal.ranks.ended() or time.monotonic() > end:
            raise Broken("no checkpoint was begun")
        time.sleep(0.001)
    ordeal.ranks.kill()
    half = written & ordeal.unfinished()
    return Outcome(f"step {max(written)} is {'half written' if half else 'whole by then'}")


def kill_in_start(ordeal: Ordeal) -> Outcome:
    ordeal.ranks.kill()
    ordeal.start()
    after_s = ordeal.draw.uniform(0.2, 4.0)
    time.sleep(after_s)
    ordeal.ranks.kill()
    return Outcome(f"killed, and again {after_s:.1f} s after the next start")


def kill_worker(ordeal: Ordeal) -> Outcome:
    rank = psutil.Process(ordeal.draw.choice(ordeal.ranks.pids))
    workers = [child for child in rank.children() if child.cmdline() == rank.cmdline()]
    ordeal.draw.choice(workers).kill()
    ended = ordeal.wait()
    said = "data loader process" in ordeal.ranks.printed()
    ordeal.expect(said, f"a killed worker is not named:\n{ordeal.ranks.printed()}")
    return Outcome(ended)


def freeze(ordeal: Ordeal) -> Outcome:
    rank = ordeal.draw.randrange(ordeal.world_size)
    ordeal.ranks.send(signal.SIGSTOP, [rank])
    time.sleep(FROZEN_S)
    ordeal.ranks.send(signal.SIGCONT, [rank])
    return Outcome(f"rank {rank} stood still for {FROZEN_S:g} s")


def ask(reason: str, ordeal: Ordeal, alone: bool = False) -> Outcome:
    """Ask the run to stop: it must save what it has done, and want to go on."""
    if reason == "STOP file":
        (ordeal.folder / STOP).touch()
    else:
        ranks = [ordeal.draw.randrange(ordeal.world_size)] if alone else None
        ordeal.ranks.send(signal.Signals[reason], ranks)
    ended = ordeal.wait()
    right = set(ordeal.ranks.codes) == {REQUEUE_CODE}
    ordeal.expect(right, f"{reason}: {ended}\n{ordeal.ranks.printed()}")
    asks = json.loads((ordeal.folder / REQUEUE).read_text())
    expected = {"reason": reason, "step": ordeal.last_step()}
    ordeal.expect(asks == expected, f"REQUEUE is {asks}, not {expected}")
    return Outcome(ended, step=asks["step"])


def flip_bit(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def damage(how: str, ordeal: Ordeal) -> Outcome:
    """Damage the newest checkpoint: it must be named, and the one before it be used."""
    ordeal.ranks.kill()
    newest, before = ordeal.whole()[:2]
    folder = checkpoint_folder(ordeal.folder, newest)
    file = ordeal.draw.choice(sorted((folder / STATE).glob("*.distcp")))
    name = f"{STATE}/{file.name}"
    if how == "truncated":
        size = ordeal.draw.randrange(file.stat().st_size)
        os.truncate(file, size)
        problem = f"{name} is damaged: {size} bytes"
    elif how == "flipped":
        flip_bit(file, ordeal.draw)
        problem = f"{name} is damaged: its sha256"
    elif how == "deleted":
        file.unlink()
        problem = f"{name} is missing"
    elif how == "no manifest":
        (folder / MANIFEST).unlink()
        problem = f"{MANIFEST} is missing"
    else:
        text = (folder / MANIFEST).read_text()
        (folder / MANIFEST).write_text(text[: ordeal.draw.randrange(len(text) - 1)])
        problem = "its manifest cannot be read"
    return Outcome(f"step {newest}: {problem}", before, f"{folder} is not used: {problem}")


def fill_disk(ordeal: Ordeal) -> Outcome:
    """Leave no room for the next checkpoint: the ranks must say so, and leave the others whole."""
    newest, leftovers = ordeal.checkpoints()[0], ordeal.unfinished()
    end = time.monotonic() + LIMIT_S
    while not ordeal.ranks.ended() and time.monotonic() < end:
        ordeal.disk.fill()
        time.sleep(0.02)
    ordeal.disk.empty()
    ended, printed = ordeal.wait(), ordeal.ranks.printed()
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    right = ordeal.ranks.first_code == 2 and len(errors) == 1 and "the disk is full" in errors[0]
    ordeal.expect(right and "Traceback" not in printed, f"a full disk: {ended}\n{printed}")
    intact = newest in ordeal.whole() and ordeal.unfinished() <= leftovers
    ordeal.expect(intact, f"a full disk left {ordeal.whole()} whole, {ordeal.unfinished()} not")
    return Outcome(f"{ended}; the disk is full")


def damage_cache(ordeal: Ordeal) -> Outcome:
    """Damage the node's copies of shards: they must be made anew."""
    ordeal.ranks.kill()
    files = sorted(ordeal.cache.rglob("*.mds"))
    for number, file in enumerate(files):
        if number % 2:
            file.unlink()
        else:
            flip_bit(file, ordeal.draw)
    return Outcome(f"{len(files)} shards in the cache changed or deleted")


def hide_data(ordeal: Ordeal) -> Outcome:
    """Take a stream's shards away: the next start must name one, and once they are back, go on."""
    ordeal.ranks.kill()
    stream = ordeal.draw.choice(sorted(ordeal.data))
    for link in ordeal.data[stream].glob("*.mds*"):
        link.unlink()
    shutil.rmtree(ordeal.cache)
    ordeal.start()
    ended, printed = ordeal.wait(), ordeal.ranks.printed()
    said = "error: " in printed and f"(stream {stream}): the shard is missing" in printed
    right = ordeal.ranks.first_code == 2 and said
    ordeal.expect(right, f"a missing shard: {ended}\n{printed}")
    ordeal.link(stream)
    return Outcome(f"{ended}; a shard of {stream} is missing")


KINDS: dict[str, Fault] = {
    "one rank killed": kill_one,
    "all ranks killed": kill_all,
    "killed during a save": kill_in_save,
    "killed during a start": kill_in_start,
    "data loader process killed": kill_worker,
    "one rank frozen": freeze,
    "SIGTERM to all ranks": partial(ask, "SIGTERM"),
    "SIGTERM to one rank": partial(ask, "SIGTERM", alone=True),
    "SIGUSR1 to all ranks": partial(ask, "SIGUSR1"),
    "STOP file": partial(ask, "STOP file"),
    "checkpoint: shard truncated": partial(damage, "truncated"),
    "checkpoint: shard deleted": partial(damage, "deleted"),
    "checkpoint: bit flipped": partial(damage, "flipped"),
    "checkpoint: manifest deleted": partial(damage, "no manifest"),
    "checkpoint: manifest cut": partial(damage, "cut manifest"),
    "disk full": fill_disk,
    "cached data damaged": damage_cache,
    "data missing": hide_data,
}


def possible_kinds(recipe: Recipe, disk: SmallDisk) -> tuple[dict[str, Fault], dict[str, str]]:
    """Return the kinds of faults that a recipe and this machine allow, and why others are left
    out."""
    local = _linkable(recipe)
    reasons = {
        "disk full": "" if disk.mounted else "needs the right to mount a file system",
        "data loader process killed": "" if recipe.data.workers else "data.workers is 0",
        "cached data damaged": "" if any(map(_packed, local.values())) else "no shard is cached",
        "data missing": ""
        if local and recipe.data.on_damaged_shard == "stop"
        else "needs local data and data.on_damaged_shard=stop",
    }
    left_out = {kind: why for kind, why in reasons.items() if why}
    return {kind: fault for kind, fault in KINDS.items() if kind not in left_out}, left_out


def _linkable(recipe: Recipe) -> dict[str, Path]:
    """Return the folders of the streams that lie on this machine."""
    paths = {name: stream.path for name, stream in recipe.data.streams.items()}
    return {name: Path(path) for name, path in paths.items() if "://" not in path}


def _packed(folder: Path) -> bool:
    """Return whether the shards of a data set are unpacked into the cache."""
    shards = json.loads((folder / "index.json").read_bytes())["shards"]
    return any(shard.get("compression") for shard in shards)
