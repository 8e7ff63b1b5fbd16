import os
import signal
import subprocess
import sys
import time

import pytest

from restomod.errors import UserError
from restomod.sweep.jobs import LocalJobs, Task, share

PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), time.sleep(0.3), sys.exit(75)))
print(os.environ["OMP_NUM_THREADS"], os.environ.get("ENTITY"), flush=True)
time.sleep(float(sys.argv[1]))
"""


def task(command, log):
    return Task(0, "job", command, log, log.parent / "job")


def wait_for(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_job_runs_is_told_to_stop_and_leaves_its_code(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    cores = len(os.sched_getaffinity(0))
    jobs = LocalJobs(2, {"ENTITY": "ours"})
    log = tmp_path / "logs" / "job.log"
    # As a sweep's commands do, this looks for python on the path.
    job = jobs.start([task(["/usr/bin/env", "python", "-c", PROGRAM, "60"], log)])[0]
    wait_for(lambda: log.read_text())
    assert log.read_text() == f"{max(1, cores // 2)} ours\n"
    assert job.code() is None
    job.stop()
    wait_for(lambda: job.code() is not None)
    assert job.code() == 75
    assert log.read_text().endswith("told\n")


def test_a_trial_whose_last_process_lives_is_not_started_again(tmp_path):
    log = tmp_path / "job.log"
    sweep = f"""
import time
from pathlib import Path
from restomod.sweep.jobs import LocalJobs, Task
command = [{sys.executable!r}, "-c", {PROGRAM!r}, "60"]
LocalJobs(1, {{}}).start([Task(0, "job", command, Path({str(log)!r}), Path("job"))])
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", sweep])
    wait_for(lambda: log.exists() and log.read_text())
    jobs = LocalJobs(1, {})
    assert jobs.start([task(["true"], log)]) == [None]
    process.send_signal(signal.SIGKILL)
    process.wait()
    started = []
    wait_for(lambda: started.extend(jobs.start([task(["true"], log)])) or started[-1])
    assert "told" in log.read_text()  # killed, it had its trial save and stop
    wait_for(lambda: started[-1].code() is not None)


def test_a_command_that_is_not_there_is_the_users_mistake(tmp_path):
    jobs = LocalJobs(1, {})
    with pytest.raises(UserError, match="command: no-such-program cannot be started"):
        jobs.start([task(["no-such-program"], tmp_path / "job.log")])
    job = jobs.start([task(["true"], tmp_path / "job.log")])[0]
    wait_for(lambda: job.code() is not None)


@pytest.mark.parametrize(
    ("jobs", "devices", "expected"),
    [
        (2, "0,1,2,3", ["0,1", "2,3"]),
        (4, "4,5,6,7", ["4", "5", "6", "7"]),
        (3, "0,1", ["0", "1", "0"]),
    ],
)
def test_jobs_share_the_gpus(monkeypatch, jobs, devices, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    assert [share(n, jobs)["CUDA_VISIBLE_DEVICES"] for n in range(jobs)] == expected


def test_no_gpus_are_shared_where_there_are_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" not in share(0, 2)
