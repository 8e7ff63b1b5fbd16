"""Slurm's commands are stand-ins here: a job is a process. tests/systems has a real Slurm."""

import contextlib
import os
import re
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from restomod.errors import UserError
from restomod.launch.profile import Mount, Profile
from restomod.sweep import slurm
from restomod.sweep.jobs import Setting, Task
from restomod.sweep.slurm import SlurmJobs

STANDINS = {
    "sbatch": """
script="${{@: -1}}"
echo "$@" >> {folder}/submitted
cp "$script" {folder}/script
log=$(sed -n 's/^#SBATCH --output=//p' "$script")
array=$(sed -n 's/^#SBATCH --array=//p' "$script")
number=$(wc -l < {folder}/submitted)
run() {{
  SLURM_JOB_ID=$1 bash "$script" >> "$2" 2>&1 &
  echo "$!" > {folder}/pid-$1
}}
if [ -n "$array" ]; then
  IFS=, read -ra indexes <<< "${{array%%%*}}"
  for range in "${{indexes[@]}}"; do for index in $(seq "${{range%-*}}" "${{range#*-}}"); do
    export SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_ID=$index
    run "${{number}}_$index" "${{log/\\%3a/$(printf %03d "$index")}}"
  done; done
else run "$number" "$log"
fi
echo "$number;cluster"
""",
    "squeue": """
if [ -f {folder}/down ]; then echo "Unable to contact slurm controller" >&2; exit 1; fi
echo "$@" >> {folder}/asked
cd {folder}
for file in pid-*; do
  if [ -f "requeued-${{file#pid-}}" ]; then echo "${{file#pid-}} PENDING"
  elif grep -q "^State:.[^ZX]" "/proc/$(cat "$file")/status" 2>/dev/null
  then echo "${{file#pid-}} RUNNING"
  else echo "${{file#pid-}} COMPLETED"; fi
done
""",
    "scancel": """
echo "$@" >> {folder}/cancelled
case "$*" in *--state=PENDING*) exit;; esac
kill -TERM "$(cat {folder}/pid-"${{@: -1}}")"
""",
    "scontrol": """
echo "$@" >> {folder}/controlled
[ "$1" != requeue ] || touch {folder}/requeued-"$2"
""",
}
TRAIN = ["bash", "-c", "trap 'sleep 0.3; echo told; exit 75' TERM; while :; do sleep 0.05; done"]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make what runs jobs, with Slurm's stand-ins on the path."""
    for name, text in STANDINS.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("#!/bin/bash\n" + text.format(folder=tmp_path))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "ASK_S", 0.0)
    monkeypatch.setattr(slurm, "LOST_S", 0.1)

    def made(profile=None, foreseen=False, at_a_time=2, before=("bash",), **variables):
        folder = tmp_path / "rates"
        folder.mkdir(exist_ok=True)
        setting = Setting("rates", folder, list(before), "20s", variables, foreseen)
        return SlurmJobs(setting, profile, ["--gres=gpu:1"], at_a_time)

    yield made
    for file in tmp_path.glob("pid-*"):  # what a failed test has left
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGTERM)


@pytest.fixture
def task(tmp_path):
    def made(*command, number=0):
        name, folder = f"rates-{number:03d}", tmp_path / "rates"
        return Task(number, name, list(command), folder / "logs" / f"{name}.log", folder / name)

    return made


def until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(job):
    codes = []
    until(lambda: codes.append(job.code()) or codes[-1] is not None)
    return codes[-1]


def alive(pid_file):
    status = Path(f"/proc/{pid_file.read_text().strip()}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_jobs_code_is_its_commands(make, task, tmp_path):
    jobs = make(ENTITY="our's")
    first = task("bash", "-c", 'echo \'said\' "$0" "$ENTITY"; exit 2', "a b")
    [job] = jobs.start([first])
    assert ended(job) == 2
    assert first.log.read_text() == "said a b our's\n"
    assert "--gres=gpu:1" in (tmp_path / "submitted").read_text()
    script = (tmp_path / "script").read_text()
    assert "#SBATCH --job-name=rates-000\n" in script
    assert "--array" not in script
    assert "#SBATCH --signal=B:USR1@20\n" in script
    [job] = jobs.start([task("true", number=1)])
    assert ended(job) == 0


def test_trials_that_are_known_are_one_array(make, task, tmp_path):
    jobs = make(foreseen=True)
    numbers = (0, 1, 2, 7, 1001, 1003)
    tasks = [task("bash", "-c", f"echo trial {n}; exit {n}", number=n) for n in numbers]
    started = jobs.start(tasks)
    assert "#SBATCH --array=0-2,7%2\n" in (tmp_path / "script").read_text()
    assert started[4:] == [None, None]  # indexes stay below Slurm's usual limit
    assert [ended(job) for job in started[:4]] == [0, 1, 2, 7]
    assert [t.log.read_text() for t in tasks[:4]] == [f"trial {n}\n" for n in numbers[:4]]
    started = jobs.start(tasks[4:])
    assert "#SBATCH --array=1,3%2\n" in (tmp_path / "script").read_text()
    assert [ended(job) for job in started] == [1001 % 256, 1003 % 256]
    assert tasks[4].log.read_text() == "trial 1001\n"
    jobs.withdraw()
    assert "--state=PENDING 1" in (tmp_path / "cancelled").read_text()


def test_another_process_finds_an_array_and_bounds_it_anew(make, task, tmp_path):
    quick, slow = task("true"), task(*TRAIN, number=1)
    for job in make(foreseen=True).start([quick, slow])[:1]:
        assert ended(job) == 0
    until(lambda: not alive(tmp_path / "pid-1_0"))
    again = make(foreseen=True, at_a_time=5)
    fresh, found = again.start([quick, slow])
    assert fresh is None  # has ended; another array would run beside the first one
    assert "update JobId=1 ArrayTaskThrottle=5" in (tmp_path / "controlled").read_text()
    found.stop()
    assert ended(found) == 75
    assert (tmp_path / "submitted").read_text().count("--parsable") == 1


def test_a_job_that_is_told_to_stop_saves_first(make, task):
    first = task(*TRAIN)
    [job] = make().start([first])
    time.sleep(0.3)
    assert job.code() is None
    job.stop()
    assert ended(job) == 75
    assert first.log.read_text() == "told\n"


def test_a_job_that_saved_at_its_time_limit_requeues_itself_and_is_waited_for(make, task, tmp_path):
    [job] = make().start([task(*TRAIN)])
    time.sleep(0.3)
    warn = ["kill", "-USR1", (tmp_path / "pid-1").read_text().strip()]
    subprocess.run(warn, check=True)
    until((tmp_path / "requeued-1").exists)
    until(lambda: not alive(tmp_path / "pid-1"))
    assert job.code() is None
    # Slurm itself may have requeued one that leaves its code all the same.
    (tmp_path / "rates" / "logs" / "rates-000.code").write_text("75")
    assert [job.code() for _ in range(5)] == [None] * 5
    (tmp_path / "requeued-1").unlink()
    assert ended(job) == 75


def test_another_process_finds_the_job_again(make, task, tmp_path):
    first = task(*TRAIN)
    make().start([first])
    time.sleep(0.3)
    [again] = make().start([first])
    again.stop()
    until(first.code.exists)
    # When nobody watched, its code is still there.
    assert ended(make().start([first])[0]) == 75
    assert (tmp_path / "submitted").read_text().count("--parsable") == 1


def test_a_job_that_is_gone_wants_to_go_on(make, task):
    jobs = make()
    [job] = jobs.start([task("bash", "-c", "kill -9 $PPID")])
    assert ended(job) == 75
    [done] = jobs.start([task("true")])
    assert ended(done) == 0


def test_a_controller_that_does_not_answer_says_nothing_about_a_job(make, task, tmp_path):
    (tmp_path / "down").touch()
    [job] = make().start([task("bash", "-c", "kill -9 $PPID")])
    for _ in range(20):
        assert job.code() is None
        time.sleep(0.02)
    [again] = make().start([task("true")])  # nor that it may be started once more
    assert again.code() is None
    (tmp_path / "down").unlink()
    assert ended(job) == 75
    assert (tmp_path / "submitted").read_text().count("--parsable") == 1


def test_slurm_is_asked_once_about_all_jobs(make, task, tmp_path, monkeypatch):
    jobs = make(foreseen=True)
    started = jobs.start([task("sleep", "1", number=n) for n in range(20)])
    monkeypatch.setattr(slurm, "ASK_S", 60.0)
    for job in started:
        job.code()
    (tmp_path / "asked").unlink(missing_ok=True)
    for job in started * 3:
        job.code()
    assert not (tmp_path / "asked").exists()


def test_what_sbatch_refuses_is_told(make, task, tmp_path):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2; exit 1\n")
    with pytest.raises(UserError, match="invalid partition"):
        make().start([task("true")])


def test_sbatch_must_be_here(make, task, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not here"):
        make().start([task("true")])


def test_a_profile_says_where_and_how_trials_run(make, task, tmp_path):
    secrets = tmp_path / "secrets.sh"
    secrets.write_text("SECRET_OF_OURS=hidden\n")
    interpreter = tmp_path / "venv" / "python"
    interpreter.parent.mkdir()
    interpreter.write_text("#!/bin/sh\necho ours $SECRET_OF_OURS $KIND $NCCL_SOCKET_IFNAME $PWD\n")
    interpreter.chmod(0o755)
    profile = Profile(
        workdir=str(tmp_path),
        python="venv/python",
        env={"KIND": "x y"},
        secrets=["SECRET_OF_OURS"],
        secrets_file=str(secrets),
        network_interface="ib0",
        time_limit="90m",
    )
    profile.slurm.partition, profile.slurm.account = "gpu", "encoders"
    first = task("/usr/bin/env", "python", "train.py")
    [job] = make(profile, before=("/usr/bin/env", "python")).start([first])
    assert ended(job) == 0
    assert first.log.read_text() == f"ours hidden x y ib0 {tmp_path}\n"
    script = (tmp_path / "script").read_text()
    for line in ("partition=gpu", "account=encoders", "time=90:00", "export=HOME,USER,LANG,PATH"):
        assert f"#SBATCH --{line}\n" in script
    assert "--exclusive" not in script  # a trial is rarely as large as a node
    assert "hidden" not in script


@pytest.mark.parametrize(
    ("container", "before", "begins"),
    [
        ("pyxis", ("python",), "srun --ntasks=1 --container-image=/x.sqsh "),
        ("pyxis", ("srun", "python"), "srun --container-image=/x.sqsh "),
        ("apptainer", ("python",), "apptainer exec --nv --bind /data:/d:ro,"),
    ],
)
def test_containers_hold_the_trials(make, task, tmp_path, container, before, begins):
    profile = Profile(image="/x.sqsh", mounts=[Mount("/data", "/d", True)])
    profile.slurm.container = container
    make(profile, before=before).start([task(*before, "train.py", "a.yaml")])
    [command] = re.findall(r"command=\((.*)\)", (tmp_path / "script").read_text())
    assert command.startswith(begins)
    assert "/data:/d:ro" in command
    assert command.endswith(" python train.py a.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_limit": "30s"}, "is not twice faults.grace 20s"),
        ({"secrets": ["WANDB_API_KEY"]}, "secrets_file: is missing"),
        ({"mounts": [Mount("pvc:x", "/x")]}, "only Kubernetes has such volumes"),
    ],
)
def test_profiles_that_do_not_suit_slurm_are_refused(make, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make(Profile(**changes))


def test_apptainer_cannot_be_put_behind_sruns_options(make):
    profile = Profile(image="/x.sif")
    profile.slurm.container = "apptainer"
    with pytest.raises(UserError, match="behind srun's options"):
        make(profile, before=("srun", "-n2", "python"))


def test_hostile_words_reach_a_trial_as_they_are(make, task, tmp_path):
    words = [
        "tokenizer=$(touch pwned)",
        "a='b",
        "{{ x }} {% raw %}",
        "x;touch pwned",
        "é 漢",
        "%3a",
    ]
    first, other = task("printf", r"%s\n", *words), task("true", number=1)
    jobs = make(Profile(workdir=str(tmp_path)), foreseen=True, before=("printf",))
    [job, _] = jobs.start([first, other])
    assert ended(job) == 0
    assert first.log.read_text().splitlines() == words
    assert not Path("pwned").exists()
    with pytest.raises(UserError, match="cannot be printed"):
        make().start([task("echo", "train.py", "a\nb")])
