"""Tasks are done once each, whatever dies on the way, and what goes wrong reaches the user."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from restomod.errors import UserError
from restomod.prepare.config import ExecutionConfig, Preparation
from restomod.prepare.executor import InProcess, Processes, open_executor, run_stage
from restomod.prepare.job import Job


@pytest.fixture
def job(tmp_path):
    return Job(Preparation(), tmp_path)


@pytest.fixture(scope="module")
def pool():
    workers = Processes(2, attempts=3)
    yield workers
    workers.close()


def number(job, n):
    with (job.folder / "calls").open("a") as file:
        file.write(f"{n}\n")
    return {"number": n}


def killed_twice(job, n):
    """Kill the worker that comes to task 5, the first two times."""
    marks = [job.folder / f"killed {time}" for time in (1, 2)]
    for mark in marks:
        if n == 5 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return number(job, n)


def one_dies_while_the_other_works(job, n):
    """Kill the worker of task 0 twice, while task 1 is at work."""
    with (job.folder / "begun").open("a") as file:
        file.write(f"{n}\n")
    marks = [job.folder / f"killed {time}" for time in (1, 2)]
    for mark in marks:
        if n == 0 and not mark.exists():
            while "1" not in (job.folder / "begun").read_text():
                time.sleep(0.005)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    while not marks[1].exists():
        time.sleep(0.005)
    return {"number": n}


def always_killed(job, n):
    os.kill(os.getpid(), signal.SIGKILL)


def refused(job, n):
    raise UserError(f"shard {n}: is wrong")


def broken(job, n):
    raise ZeroDivisionError("somewhere")


def never_ends(job, n):
    (job.folder / f"begun {n}").write_text(str(os.getpid()))
    threading.Event().wait()


def tasks(count):
    return {n: (n,) for n in range(count)}


def test_results_come_in_order_and_a_finished_task_is_not_done_again(job, pool):
    for workers in (InProcess(), pool):
        assert run_stage(workers, number, job, "stage", {n: (n,) for n in (2, 0)}) == [
            {"number": 2},
            {"number": 0},
        ]
        found = run_stage(workers, number, job, "stage", tasks(4))
        assert [result["number"] for result in found] == [0, 1, 2, 3]
    calls = (job.folder / "calls").read_text().split()
    assert sorted(calls) == ["0", "1", "2", "3"]


def test_a_worker_that_is_killed_is_replaced_and_its_task_begun_anew(job, pool):
    found = run_stage(pool, killed_twice, job, "stage", tasks(9))
    assert [result["number"] for result in found] == list(range(9))
    assert (job.folder / "killed 2").exists()


def test_a_dead_worker_takes_no_other_task_with_it(job, pool):
    run_stage(pool, one_dies_while_the_other_works, job, "stage", tasks(2))
    assert sorted((job.folder / "begun").read_text().split()) == ["0", "0", "0", "1"]


def test_a_task_that_always_kills_its_worker_ends_the_job_and_names_itself(job, pool):
    with pytest.raises(UserError, match=r"stage, task 0: its worker died 3 times.*memory"):
        run_stage(pool, always_killed, job, "stage", tasks(1))
    assert run_stage(pool, number, job, "next", tasks(1)) == [{"number": 0}]


def test_an_exception_in_a_task_reaches_the_caller_with_its_place(job, pool):
    for workers in (InProcess(), pool):
        with pytest.raises(UserError, match="shard 0: is wrong"):
            run_stage(workers, refused, job, "refused", tasks(1))
        with pytest.raises(ZeroDivisionError) as raised:
            run_stage(workers, broken, job, "broken", tasks(1))
        assert "in broken" in str(raised.value.__cause__) or raised.traceback[-1].name == "broken"


def test_who_does_the_work_is_chosen_by_the_recipe(monkeypatch):
    with open_executor(ExecutionConfig(workers=1)) as one:
        assert isinstance(one, InProcess)
    with open_executor(ExecutionConfig(workers=2)) as two:
        assert isinstance(two, Processes)
    with (
        open_executor(ExecutionConfig(ray="127.0.0.1:1")) as ray,
        pytest.raises(UserError, match=r"execution.ray: 127.0.0.1:1: no Ray cluster answers"),
    ):
        list(ray.run([(number, Job(Preparation(), None), "stage", 0, (0,))]))


def start(folder, lines, **options):
    """Start a script of a `job` and this module, `t`."""
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from tests.unit.prepare import test_executor as t\n"
        "job = t.Job(t.Preparation(), Path(sys.argv[1]))\n"
        "if __name__ == '__main__':\n"
    )
    (folder / "script.py").write_text(script + "".join(f"    {line}\n" for line in lines))
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths},
        **options,
    )


def test_workers_end_when_the_job_is_killed(tmp_path):
    parent = start(
        tmp_path, ["t.run_stage(t.Processes(2, 3), t.never_ends, job, 'stage', t.tasks(2))"]
    )
    begun = [tmp_path / "begun 0", tmp_path / "begun 1"]
    while not all(file.exists() and file.read_text() for file in begun):
        assert parent.poll() is None
        time.sleep(0.005)
    parent.kill()
    parent.wait()
    given_up = time.monotonic() + 60
    while any(Path(f"/proc/{file.read_text()}").exists() for file in begun):
        assert time.monotonic() < given_up
        time.sleep(0.005)


def test_ctrl_c_prints_nothing_of_workers_that_wait(tmp_path):
    lines = [
        "pool = t.Processes(2, 3)",
        "t.run_stage(pool, t.number, job, 'stage', t.tasks(2))",
        "print('done', flush=True)",
        "time.sleep(60)",
    ]
    with start(
        tmp_path,
        lines,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as parent:
        assert parent.stdout.readline() == "done\n"
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to all of them
        told = parent.communicate(timeout=60)[1]
    assert "SpawnProcess" not in told
    assert told.count("Traceback") == 1  # the script's own
