"""Two jobs of a machine do not train one run; a killed one leaves nothing that keeps the next."""

import subprocess
import sys
import time

import pytest

from restomod.errors import UserError
from restomod.train.run_lock import lock_run

HOLDER = """
import os, sys, time
from pathlib import Path
from restomod.train.run_lock import lock_run
lock = lock_run(Path(sys.argv[1]))
print(os.getpid(), flush=True)
if os.fork() == 0:  # as a loader process
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_second_job_is_refused_until_the_first_has_ended(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = tmp_path / "runs" / "mine"
    command = [sys.executable, "-c", HOLDER, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        pid, child = job.stdout.readline().strip(), int(job.stdout.readline())
        with pytest.raises(UserError, match=rf"mine: process {pid} on this machine trains"):
            lock_run(folder, patience_s=0.3)
        assert "waits 0.3 s for it to end" in caplog.text
        lock_run(tmp_path / "runs" / "other").close()
        job.kill()
        began = time.monotonic()
        lock_run(folder, patience_s=20).close()
        assert time.monotonic() - began < 10
        subprocess.run(["kill", "-9", str(child)], check=True)
