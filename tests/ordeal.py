"""The run that `tests/chaos.py` does things to: starts and watches it, and knows from where it must
go on."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from restomod.config import Recipe
from restomod.train.checkpoints.manifest import MANIFEST, checkpoint_folder, local_steps, verify
from restomod.train.checkpoints.resume import REJECTED
from tests.conftest import metrics
from tests.ranks import Ranks
from tests.small_disk import SmallDisk

LIMIT_S = 180.0
"""For ranks to end, to start, or to finish another step."""


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
        self.data = {name: out / "data" / name for name in linkable(recipe)}
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

    def trains(self) -> bool:
        """Return whether the present ranks have done a step."""
        return "first step done" in self.ranks.printed()

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

    def pause(self, seconds: float) -> None:
        """Wait for so long, or until the ranks have ended."""
        with contextlib.suppress(TimeoutError):
            self.ranks.wait(seconds)

    def wait(self) -> str:
        """Wait until all ranks have ended; return with what they did."""
        self.ranks.wait(LIMIT_S)
        late = ", one of them by SIGKILL after its grace" if self.ranks.overdue else ""
        return f"exit codes {', '.join(map(str, self.ranks.codes))}{late}"


def linkable(recipe: Recipe) -> dict[str, Path]:
    """Return the folders of the streams that lie on this machine."""
    paths = {name: stream.path for name, stream in recipe.data.streams.items()}
    return {name: Path(path) for name, path in paths.items() if "://" not in path}
