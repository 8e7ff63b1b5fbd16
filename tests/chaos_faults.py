"""The faults of `tests/chaos.py`: what is done to a run, and what it must do then.

A fault is a function of an `Ordeal`, the run with all that happens to it. It returns when the ranks
have ended, or go on by themselves, and says what the next start must do.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from restomod.config import Recipe
from restomod.train.checkpoints.manifest import MANIFEST, STATE, checkpoint_folder
from restomod.train.faults.stopping import REQUEUE, REQUEUE_CODE, STOP
from tests.ordeal import LIMIT_S, Broken, Ordeal, Outcome, linkable
from tests.small_disk import SmallDisk

FROZEN_S = 2.0

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
    seen: set[int] = set()
    end = time.monotonic() + LIMIT_S
    # Once is enough, except for a process that a roll-back is about to end anyway.
    while not ordeal.ranks.ended() and time.monotonic() < end:
        forks = loader_processes(rank) if ordeal.trains() else []  # before, there are others
        for fork in forks:
            if fork.pid in seen:  # one that is new may be about to become another program
                with contextlib.suppress(psutil.NoSuchProcess):
                    fork.kill()
        seen = {fork.pid for fork in forks}
        ordeal.pause(0.1)
    ended = ordeal.wait()
    said = "data loader process" in ordeal.ranks.printed()
    ordeal.expect(said, f"a killed worker is not named:\n{ordeal.ranks.printed()}")
    return Outcome(ended)


def loader_processes(rank: psutil.Process) -> list[psutil.Process]:
    """Return a rank's living children that run its own program."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in rank.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, too
                if child.cmdline() == rank.cmdline():
                    found.append(child)
    return found


def freeze(ordeal: Ordeal) -> Outcome:
    rank = ordeal.draw.randrange(ordeal.world_size)
    ordeal.ranks.send(signal.SIGSTOP, [rank])
    time.sleep(FROZEN_S)
    ordeal.ranks.send(signal.SIGCONT, [rank])
    return Outcome(f"rank {rank} stood still for {FROZEN_S:g} s")


def ask(reason: str, ordeal: Ordeal, alone: bool = False) -> Outcome:
    """Ask the run to stop: it must save what it has done, and want to go on."""
    while not (ordeal.trains() or ordeal.ranks.ended()):
        ordeal.pause(0.02)
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
    local = linkable(recipe)
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


def _packed(folder: Path) -> bool:
    """Return whether the shards of a data set are unpacked into the cache."""
    shards = json.loads((folder / "index.json").read_bytes())["shards"]
    return any(shard.get("compression") for shard in shards)
