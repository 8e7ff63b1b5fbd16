"""Slurm jobs that run a sweep's trials, one each.

In: a command line and a log file, on disks that the nodes share. Out: a `Job`. The job's script
leaves the exit code of its command beside the log; a job that is gone without one is lost, and its
trial goes on in another.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from restomod.errors import UserError
from restomod.sweep.jobs import Job, python_first
from restomod.train.stopping import REQUEUE_CODE

ASK_S = 10.0
"""Between two questions to Slurm about a job."""
LOST_S = 30.0
"""After which a job that Slurm does not know, or calls ended, has left no code: disks that nodes
share may show a file late."""
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD")
SCRIPT = """#!/bin/bash
rm -f {code}
trap 'kill -TERM "$child" 2>/dev/null' TERM USR1
{command} &
child=$!
while :; do
  wait "$child"
  code=$?
  if ! [ "$code" -gt 128 ] || ! kill -0 "$child" 2>/dev/null; then break; fi
done
echo "$code" > {code}.new && mv {code}.new {code}
exit "$code"
"""


class SlurmJob:
    """A job, from its submission on."""

    def __init__(self, number: str, code: Path) -> None:
        self.handle = number
        self._code = code
        self._asked = self._seen = time.monotonic()

    def code(self) -> int | None:
        if self._code.exists():
            return int(self._code.read_text())
        now = time.monotonic()
        if now - self._asked > ASK_S:
            self._asked = now
            if alive(self.handle):
                self._seen = now
            elif now - self._seen > LOST_S:
                return REQUEUE_CODE
        return None

    def stop(self) -> None:
        # To the script, which passes it on; Slurm would kill what is left some time after its own.
        subprocess.run(["scancel", "--batch", "--signal=TERM", self.handle], capture_output=True)


class SlurmJobs:
    """Submits trials with sbatch."""

    stops = False

    def __init__(self, options: Sequence[str], environment: dict[str, str]) -> None:
        """`options` are sbatch's, for every trial."""
        self._options = list(options)
        self._environment = {**os.environ, **environment, "PATH": python_first()}

    def start(self, name: str, command: Sequence[str], log: Path, handle: str) -> Job | None:
        log.parent.mkdir(parents=True, exist_ok=True)
        code = log.with_suffix(".code").absolute()
        if handle and (code.exists() or alive(handle)):
            return SlurmJob(handle, code)
        script = SCRIPT.format(command=shlex.join(command), code=shlex.quote(str(code)))
        code.unlink(missing_ok=True)
        submit = ["sbatch", "--parsable", f"--job-name={name}", f"--output={log.absolute()}"]
        submit += ["--open-mode=append", *self._options]
        try:
            done = subprocess.run(
                submit, input=script, env=self._environment, capture_output=True, text=True
            )
        except FileNotFoundError as error:
            raise UserError("sbatch is not here: --on slurm submits jobs with it") from error
        if done.returncode:
            raise UserError(f"{shlex.join(submit)}: {(done.stderr or done.stdout).strip()}")
        return SlurmJob(done.stdout.strip().partition(";")[0], code)


def alive(number: str) -> bool:
    """Return whether a job waits or runs, as far as Slurm can be asked."""
    asked = subprocess.run(
        ["squeue", "--noheader", f"--jobs={number}", "--states=all", "--format=%T"],
        capture_output=True,
        text=True,
    )
    if asked.returncode:
        return "Invalid job id" not in asked.stderr
    return any(state in ALIVE for state in asked.stdout.split())
