"""One job at a time trains a run on a machine: two would write one log and the same checkpoints.

In: a run's folder. Out: a lock, which the system takes back when the process that holds it ends,
however it ends. `builder.py` takes it on rank 0, before it looks for what the run begins from.

The lock's file lies in the machine's folder for temporary files: on disks that nodes share, the
lock of a node that is lost may outlive it, and the run is to go on without that node.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import IO

from restomod.errors import UserError

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""Waited for a job that is about to end: ranks whose launcher was killed save first."""


def lock_run(folder: Path, patience_s: float = PATIENCE_S) -> IO[str]:
    """Return the lock of a run, which is let go when it is closed.

    Raises UserError if another process of this machine keeps it for longer than `patience_s`.
    """
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"restomod-{os.getuid()}-{name}.lock"
    file = path.open("a+", encoding="utf-8")
    end, told = time.monotonic() + patience_s, False
    while True:
        # Not flock, whose locks loader processes inherit and keep for a while after a kill.
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file
        holder = f"process {path.read_text(encoding='utf-8') or 'of another job'} on this machine"
        if time.monotonic() > end:
            file.close()
            raise UserError(
                f"{folder}: {holder} trains this run; wait for it, stop it with Ctrl-C or "
                f"`touch {folder}/STOP`, or give another run_name"
            )
        if not told:
            log.warning(
                "%s: %s trains this run; waits %g s for it to end", folder, holder, patience_s
            )
            told = True
        time.sleep(0.2)
