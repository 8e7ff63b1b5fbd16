"""Slurm's commands are stand-ins here: a job is a process. tests/systems has a real Slurm."""

import stat
import time

import pytest

from restomod.errors import UserError
from restomod.sweep import slurm
from restomod.sweep.slurm import SlurmJobs

STANDINS = {
    "sbatch": """
echo "$@" >> {folder}/submitted
for option in "$@"; do case $option in --output=*) log=${{option#--output=}};; esac; done
cat > {folder}/script
bash {folder}/script >> "$log" 2>&1 &
echo "$!;cluster"
""",
    "squeue": """
for option in "$@"; do case $option in --jobs=*) job=${{option#--jobs=}};; esac; done
if [ -f {folder}/down ]; then echo "Unable to contact slurm controller" >&2; exit 1; fi
if kill -0 "$job" 2>/dev/null; then echo RUNNING
else echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; fi
""",
    "scancel": """
kill -TERM "${{@: -1}}"
""",
}
TRAIN = ["bash", "-c", "trap 'sleep 0.3; echo told; exit 75' TERM; while :; do sleep 0.05; done"]


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    for name, text in STANDINS.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("#!/bin/bash\n" + text.format(folder=tmp_path))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "ASK_S", 0.0)
    monkeypatch.setattr(slurm, "LOST_S", 0.1)
    return SlurmJobs(["--gres=gpu:1"], {})


def ended(job):
    end = time.monotonic() + 20
    while (code := job.code()) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    return code


@pytest.fixture
def log(tmp_path):
    return tmp_path / "logs" / "a trial.log"


def test_a_jobs_code_is_its_commands(jobs, log, tmp_path):
    job = jobs.start("rates-000", ["bash", "-c", "echo 'said' \"$0\"; exit 2", "a b"], log, "")
    assert ended(job) == 2
    assert log.read_text() == "said a b\n"
    submitted = (tmp_path / "submitted").read_text()
    assert "--job-name=rates-000" in submitted
    assert "--gres=gpu:1" in submitted
    job = jobs.start("rates-000", ["true"], log, "")
    assert ended(job) == 0


def test_a_job_that_is_told_to_stop_saves_first(jobs, log):
    job = jobs.start("rates-000", TRAIN, log, "")
    time.sleep(0.3)
    assert job.code() is None
    job.stop()
    assert ended(job) == 75
    assert log.read_text() == "told\n"


def test_another_process_finds_the_job_again(jobs, log, tmp_path):
    job = jobs.start("rates-000", TRAIN, log, "")
    time.sleep(0.3)
    again = SlurmJobs([], {}).start("rates-000", TRAIN, log, job.handle)
    assert again.handle == job.handle
    again.stop()
    assert ended(again) == 75
    # When nobody watched, its code is still there.
    assert ended(SlurmJobs([], {}).start("rates-000", TRAIN, log, job.handle)) == 75
    assert (tmp_path / "submitted").read_text().count("--job-name") == 1


def test_a_job_that_is_gone_wants_to_go_on(jobs, log, tmp_path):
    job = jobs.start("rates-000", ["bash", "-c", "kill -9 $PPID"], log, "")
    assert ended(job) == 75
    done = jobs.start("rates-000", ["true"], log, job.handle)
    assert done.handle != job.handle
    assert ended(done) == 0


def test_a_controller_that_does_not_answer_says_nothing_about_a_job(jobs, log, tmp_path):
    (tmp_path / "down").touch()
    job = jobs.start("rates-000", ["bash", "-c", "kill -9 $PPID"], log, "")
    for _ in range(20):
        assert job.code() is None
        time.sleep(0.02)
    (tmp_path / "down").unlink()
    assert ended(job) == 75


def test_what_sbatch_refuses_is_told(jobs, log, tmp_path):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2; exit 1\n")
    with pytest.raises(UserError, match="invalid partition"):
        jobs.start("rates-000", ["true"], log, "")


def test_sbatch_must_be_here(jobs, log, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not here"):
        SlurmJobs([], {}).start("rates-000", ["true"], log, "")
