"""The process that talks to Weights & Biases for a run: `wandb_listener.py` starts it.

In: a file of settings, and lines of metrics.jsonl on standard input. Out: a W&B run, online or in
offline files. A server that does not answer makes it an offline run. It ends when it is told to, or
when the training process is gone. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from restomod.train.watching.alerts import Chosen
from restomod.train.watching.background import Line
from restomod.train.watching.scalars import scalars
from restomod.train.watching.wandb_listener import CLOSE, PROCESS

log = logging.getLogger("restomod.wandb")

OFFLINE = "offline"
PROBES_S = (4.0, 4.0)
"""Time that a server has to answer at all, each try."""
INIT_TIMEOUT_S = 60.0
LINGER_S = 120.0
"""How long it may go on without the training process, to send the rest."""
EVERY_TIME = ("start", "resume", "rollback", "stop", "end", "nonfinite", "hang", "failure")
"""Events that are sent wherever the run stands; of all others, each step once."""
COLUMNS = ["step", "tokens", "domain", "text", "expected", "probability", "guesses"]


class Sent:
    """The last step that was sent of each kind of event, kept in a file for the next process.

    A run that goes back does steps again: W&B keeps what it has, so they are not sent again.
    """

    def __init__(self, path: Path, run_id: str, known: dict[str, Any]) -> None:
        """`known` is the summary of the run that the server has."""
        self._path = path
        self._id = run_id
        self._steps: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            before = json.loads(path.read_text())
            self._steps = before["steps"] if before["id"] == run_id else {}
        for key, value in known.items():
            kind, slash, field = key.rpartition("/")
            if slash and field == "step" and isinstance(value, int | float):
                self._steps[kind] = max(int(value), self._steps.get(kind, -1))

    def covers(self, line: Line) -> bool:
        """Return whether the line was sent."""
        event = line["event"]
        return event not in EVERY_TIME and line.get("step", 0) <= self._steps.get(event, -1)

    def add(self, line: Line) -> None:
        if line["event"] in EVERY_TIME or "step" not in line:
            return
        self._steps[line["event"]] = line["step"]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"id": self._id, "steps": self._steps}))
        temporary.replace(self._path)


class Guard:
    """Ends this process when it takes too long without the training process."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self.left = False
        """Whether the training process has ended, or has said its last word."""
        threading.Thread(target=self._watch, daemon=True).start()

    def gone(self) -> bool:
        return os.getppid() != self._parent

    def _watch(self) -> None:
        while not (self.left or self.gone()):
            time.sleep(0.5)
        time.sleep(LINGER_S)
        end_children()
        os._exit(1)


def end_children() -> None:
    """Kill W&B's own processes."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()


def lines(guard: Guard) -> Iterator[Line]:
    """Yield what comes on standard input, until `CLOSE` or until nobody is there to send more."""
    rest = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.5)
        if not ready:
            if guard.gone():
                return
            continue
        data = os.read(0, 1 << 20)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        for text in whole:
            line = json.loads(text)
            if line["event"] == CLOSE:
                return
            yield line


def answers(address: str) -> str:
    """Return why a server does not answer; empty if it does, whatever it says."""
    problem = ""
    for timeout_s in PROBES_S:
        try:
            with urllib.request.urlopen(f"{address}/healthz", timeout=timeout_s):
                return ""
        except urllib.error.HTTPError:
            return ""
        except (OSError, ValueError) as error:
            problem = str(getattr(error, "reason", error))
    return problem


def begin(settings: dict[str, Any], online: bool) -> Any:
    """Return the W&B run; an online one that cannot begin becomes an offline one, in this process
    made anew."""
    import wandb

    folder = Path(settings["folder"]) / "wandb"
    before = set(folder.glob("run-*"))
    if online and (problem := answers(wandb.setup().settings.base_url)):
        go_offline(problem, settings)
    try:
        return wandb.init(
            id=settings["id"],
            name=settings["name"],
            project=settings["project"],
            resume="allow",
            mode="online" if online else "offline",
            dir=settings["folder"],
            config=settings["config"],
            settings=wandb.Settings(
                init_timeout=INIT_TIMEOUT_S,
                console="off",
                disable_code=True,
                x_stats_pid=settings["pid"],
            ),
        )
    except Exception as error:
        if not online:
            raise
        end_children()
        for useless in set(folder.glob("run-*")) - before:
            shutil.rmtree(useless, ignore_errors=True)
        go_offline(f"{type(error).__name__}: {error}", settings)


def go_offline(problem: str, settings: dict[str, Any]) -> None:
    """Become a process that writes offline files; what waits on standard input is still there."""
    log.warning(
        "W&B cannot be reached; its files in %s/wandb wait for `wandb sync`: %s",
        settings["folder"],
        problem.splitlines()[0],
    )
    end_children()
    os.environ.pop("WANDB_SERVICE", None)  # they were its
    words = [sys.executable, "-W", "ignore", "-m", PROCESS, settings["path"], OFFLINE]
    os.execv(sys.executable, words)


class Sender:
    """Turns lines into what W&B shows."""

    def __init__(self, run: Any, settings: dict[str, Any]) -> None:
        self._run = run
        self._settings = settings
        self._chosen = Chosen(settings["alerts"], settings["name"])
        self._held_out: dict[str, float] = {}
        folder = Path(settings["folder"])
        self._sent = Sent(folder / "wandb" / "sent.json", settings["id"], dict(run.summary))
        run.define_metric("tokens")
        run.define_metric("*", step_metric="tokens")
        run.save(str(folder / "config.yaml"), base_path=str(folder), policy="now")

    def send(self, line: Line) -> None:
        """Send a line; one that W&B does not take is told of and left out."""
        try:
            self._send(line)
        except Exception as error:
            log.warning("W&B did not take %s: %s: %s", line, type(error).__name__, error)

    def _send(self, line: Line) -> None:
        """Send a line, unless it was sent before this process or before the run went back."""
        self._alert(line)
        if self._sent.covers(line):
            return
        event = line["event"]
        if event in ("start", "resume"):
            about = {key: line[key] for key in line if key not in ("event", "time_s")}
            self._run.config.update({"about": about}, allow_val_change=True)
        row: Line = {key: line[key] for key in ("step", "tokens") if key in line}
        if event == "samples":
            row["samples"] = self._table(line)
        if "step" in line:
            row[f"{event}/step"] = line["step"]
        self._run.log({**row, **scalars(line)})
        if event == "eval":
            self._held_out = {name: of["loss"] for name, of in line["domains"].items()}
        if event == "checkpoint":
            self._reference(line)
        self._sent.add(line)

    def _table(self, line: Line) -> Any:
        import wandb

        rows = []
        for sample in line["samples"]:
            guesses = {g["token"]: g["probability"] for g in sample["predictions"]}
            texts = [f"{token.strip()} {share:.0%}" for token, share in guesses.items()]
            rows.append(
                [
                    line["step"],
                    line["tokens"],
                    sample["domain"],
                    sample["text"],
                    sample["expected"],
                    guesses.get(sample["expected"], 0.0),
                    ", ".join(texts),
                ]
            )
        return wandb.Table(columns=COLUMNS, data=rows)

    def _reference(self, line: Line) -> None:
        """Say where a checkpoint is: W&B keeps its address and what is known of it, no weights."""
        import wandb

        name = f"step-{line['step']:08d}"
        facts: Line = {
            key: line[key] for key in ("step", "tokens", "bytes", "seconds") if key in line
        }
        artifact = wandb.Artifact(
            f"checkpoint-{self._settings['id']}",
            "checkpoint",
            metadata={**facts, "heldout_loss": self._held_out},
        )
        try:
            artifact.add_reference(f"{self._settings['checkpoints']}/{name}", name, checksum=False)
        except (OSError, ValueError):  # by now it may have made room for newer ones
            return
        self._run.log_artifact(artifact, aliases=["latest", name])

    def _alert(self, line: Line) -> None:
        alert = self._chosen.alert(line)
        if alert:
            level = "ERROR" if alert.bad else "INFO"
            self._run.alert(title=alert.kind, text=alert.text, level=level, wait_duration=0)


def main() -> None:
    """Serve one run until its training process says that it ends, or is gone."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # sent to whole jobs: the training process will tell
    path, *mode = sys.argv[1:]
    settings = {**json.loads(Path(path).read_text()), "path": path}
    sys.argv = settings["argv"]  # what W&B notes as the run's command
    folder = Path(settings["folder"]) / "wandb"
    os.environ["WANDB_SILENT"] = "true"
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to W&B's makers
    os.environ.setdefault("WANDB_DATA_DIR", str(folder))  # offline artifacts are sent from there
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
    guard = Guard(settings["pid"])
    run = begin(settings, online=settings["mode"] == "online" and OFFLINE not in mode)
    sender, last = Sender(run, settings), ""
    for line in lines(guard):
        sender.send(line)
        last = line["event"]
    guard.left = True
    run.finish(exit_code=0 if last in ("end", "stop") else 1)


if __name__ == "__main__":
    main()
