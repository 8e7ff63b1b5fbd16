"""`restomod launch --on slurm` on a real Slurm: a job that loses a node, reaches its time limit,
and ends as a run that nothing disturbed; and one that is cancelled."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from restomod.train.checkpoints.manifest import newest_checkpoint
from tests.conftest import Tiny, metrics
from tests.integration.test_resume import exactly
from tests.slurm import Slurm, programs, until

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    bool(programs()), reason="needs Slurm: apt-get install --no-install-recommends slurm-wlm munge"
)
STEPS = 200
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory):
    cluster = Slurm(tmp_path_factory.mktemp("slurm"), nodes=3)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def recipe(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of a long run, which wants its signal 100 s before a time limit."""
    return tiny.write(
        tmp_path_factory.mktemp("recipe") / "recipe.yaml",
        phases__slots=STEPS * 4 * 512,
        evaluation__every_steps=STEPS // 2,
        checkpoint__every_steps=50,
        faults__grace="100s",
    )


def launched(slurm: Slurm, folder: Path, *words: object) -> str:
    """Submit to two nodes; return the job's number."""
    profile = folder / "profile.yaml"
    # The job sees none of this process's variables, as it is meant to.
    facts = {"python": sys.executable, "workdir": str(ROOT), "time_limit": "10m"}
    facts["env"] = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    profile.write_text(yaml.safe_dump(facts))
    command = [Path(sys.executable).parent / "restomod", "launch", *words, "--on", "slurm"]
    command += ["--profile", profile, "--nodes=2", "--gpus-per-node=0", "--procs-per-node=1"]
    environment = {**slurm.environment, "WANDB_API_KEY": "hidden-value"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return re.search(r"scancel (\d+) ", done.stdout)[1]


def ranks(folder: Path) -> list[psutil.Process]:
    """Return the ranks of a run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if words[2:3] == ["train.py"] and f"run_name={folder.name}" in words:
                found.append(process)
    return [rank for rank in found if rank.parent() not in found]  # not its loader


def test_run_survives_what_a_cluster_does_to_it(tiny, train, slurm, recipe, tmp_path):
    code, text = train(recipe, "run_name=unbroken", world_size=2)
    assert code == 0, text
    folder = tiny.folder / "runs" / "on-slurm"
    job = launched(slurm, tmp_path, recipe, f"run_name={folder.name}")
    log = folder / "logs" / f"slurm-{job}.log"

    def steps_after(resumes: int, steps: int) -> None:
        """Wait for so many steps after as many resumes."""

        def there() -> bool:
            assert slurm.job(job)["JobState"] in ALIVE, log.read_text()
            resumed = metrics(folder, "resume")
            start = resumed[-1]["from_step"] if resumed else 0
            return len(resumed) == resumes and len(metrics(folder)) >= start + steps

        until(there, 180)

    steps_after(0, 30)
    first = slurm("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()[0]
    slurm("scontrol", "update", f"NodeName={first}", "State=down", "Reason=test")
    steps_after(1, 5)
    assert first not in slurm("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()
    waiting = ranks(folder)[0]
    waiting.suspend()  # or the run would be complete before Slurm looks at its limits
    hours, minutes, _ = map(int, slurm.job(job)["RunTime"].split(":"))
    slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2}")
    until(lambda: "SIGUSR1: the run saves" in log.read_text(), 60)
    with contextlib.suppress(psutil.NoSuchProcess):
        waiting.resume()
    until(lambda: slurm.job(job)["Restarts"] == "2", 60)
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=60")  # the requeued job has the same
    until(lambda: slurm.job(job)["JobState"] == "COMPLETED", 120)
    assert slurm.job(job)["Restarts"] == "2"
    assert exactly(folder) == exactly(tiny.folder / "runs" / "unbroken")
    everything = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    assert b"hidden-value" not in everything


def test_cancelled_job_saves_and_stays_cancelled(tiny, slurm, recipe, tmp_path):
    folder = tiny.folder / "runs" / "cancelled"
    job = launched(slurm, tmp_path, recipe, f"run_name={folder.name}")
    until(lambda: len(metrics(folder)) >= 30, 180)
    slurm("scancel", job)
    until(lambda: slurm.job(job)["JobState"] == "CANCELLED", 60)
    until(lambda: slurm.job(job)["EndTime"] != "Unknown", 60)
    until(lambda: (folder / "REQUEUE").exists(), 40)
    told = json.loads((folder / "REQUEUE").read_text())
    assert told["reason"] == "SIGTERM"
    assert newest_checkpoint(folder)[1]["step"] == told["step"] >= 30
    until(lambda: not slurm("squeue", "-h", "-j", job).strip(), 60)
    assert slurm.job(job)["Restarts"] == "0"
