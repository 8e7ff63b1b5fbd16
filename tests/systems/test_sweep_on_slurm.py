"""Sweeps on a real Slurm: arrays and jobs that outlive the sweep's process, reach a time limit,
lose a node, are cancelled or fail."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import Tiny, metrics
from tests.slurm import Slurm, programs, until

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.skipif(
    bool(programs()), reason="needs Slurm: apt-get install --no-install-recommends slurm-wlm munge"
)
STEPS = 100
ACTOR = """
import json, os, signal, sys, time
from pathlib import Path

values = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
folder = Path(values["runs_dir"]) / values["run_name"]
folder.mkdir(parents=True, exist_ok=True)
log = folder / "metrics.jsonl"
first = int(os.environ.get("SLURM_PROCID", 0)) == 0


def leave(number, frame):
    time.sleep(0.5)
    step = len(log.read_text().splitlines())
    if first:
        (folder / "REQUEUE").write_text(json.dumps({"step": step, "reason": "SIGTERM"}))
    (folder / f"saved-{os.environ.get('SLURM_PROCID')}-{step}").touch()
    sys.exit(75)


signal.signal(signal.SIGTERM, leave)
(folder / "REQUEUE").unlink(missing_ok=True)
if float(values["optimizer.lr"]) > 0.1:
    sys.exit("error: such a rate")
done = len(log.read_text().splitlines()) if log.exists() else 0
(folder / f"marked-{os.environ.get('MARK')}").touch()
for step in range(done + 1, 101):
    time.sleep(0.05)
    if first:
        loss = {"all": {"loss": 1 / step}}
        with log.open("a") as file:
            line = {"event": "eval", "time_s": 1.0, "step": step, "domains": loss}
            file.write(json.dumps(line) + chr(10))
"""
"""Trains nothing, but logs, saves and goes on as a run does, in no time."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory):
    cluster = Slurm(tmp_path_factory.mktemp("slurm"), nodes=3)
    yield cluster
    cluster.close()


class Sweep:
    """A sweep file, and the command that runs it."""

    def __init__(self, tiny: Tiny, folder: Path, slurm: Slurm, **changes) -> None:
        recipe = tiny.write(
            folder / "recipe.yaml",
            runs_dir=str(folder),
            data__workers=0,
            phases__slots=STEPS * 4 * 512,
            faults__grace="20s",
            logging={"wandb": {"mode": "disabled"}},
        )
        content = {
            "name": "rates",
            "program": "train.py",
            "command": ["${env}", "python", "${program}", str(recipe), "${args_no_hyphens}"],
            "method": "grid",
            "metric": {"name": "eval/all/loss", "goal": "minimize"},
            "parameters": {"optimizer.lr": {"values": [1e-5, 0.003, 0.01]}},
        }
        self.file = folder / "rates.yaml"
        self.file.write_text(yaml.safe_dump(content | changes))
        self.profile = folder / "profile.yaml"
        # Trials see none of this process's variables, as it is meant to.
        variables = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "MARK": "profile"}
        facts = {"python": sys.executable, "workdir": str(ROOT), "env": variables}
        facts |= {"time_limit": "10m", "slurm": {"partition": "main"}}
        self.profile.write_text(yaml.safe_dump(facts))
        self.recipe, self.folder, self._slurm = recipe, folder / "rates", slurm

    def start(self, *options: str, jobs: int = 2) -> subprocess.Popen:
        command = [BIN / "restomod", "sweep", self.file, "--on", "slurm", "--jobs", str(jobs)]
        command += ["--json", *options]
        environment = {**self._slurm.environment, "MARK": "shell"}
        return subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def trial(self, number: int) -> Path:
        return self.folder / f"rates-{number:03d}"

    def await_steps(self, number: int, steps: int, sweep: subprocess.Popen | None = None) -> None:
        def there() -> bool:
            assert sweep is None or sweep.poll() is None, sweep.communicate()
            log = self.trial(number) / "metrics.jsonl"
            return log.exists() and log.read_text().count("\n") >= steps

        until(there, 120)

    def submitted(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.folder / "slurm.jsonl").read_text().splitlines()]


def ended(sweep: subprocess.Popen) -> dict:
    printed, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors
    return json.loads(printed)


@pytest.mark.slow
def test_an_array_goes_on_by_itself_and_ends_as_trials_that_nothing_disturbed(
    tiny, slurm, train, tmp_path
):
    sweep = Sweep(tiny, tmp_path, slurm)
    options = ("--profile", str(sweep.profile))
    process = sweep.start(*options)
    sweep.await_steps(0, 10, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "the jobs of 3 trials go on; the same command follows them" in errors
    handles = sweep.submitted()[0]
    assert sorted(handles) == ["rates-000", "rates-001", "rates-002"]
    # Slurm's own warning of a time limit, while no process watches.
    slurm("scancel", "--batch", "--signal=USR1", handles["rates-000"])
    until(lambda: slurm.job(handles["rates-000"])["Restarts"] == "1", 60)
    sweep.await_steps(1, 10)
    node = slurm.job(handles["rates-001"])["NodeList"]
    slurm("scontrol", "update", f"NodeName={node}", "State=down", "Reason=test")
    until(lambda: slurm.job(handles["rates-001"])["Restarts"] == "1", 60)
    slurm("scontrol", "update", f"NodeName={node}", "State=resume")
    told = ended(sweep.start(*options))
    assert [trial["state"] for trial in told["trials"]] == ["done"] * 3
    assert len(sweep.submitted()) == 1
    for number, resumes in enumerate((1, 1, 0)):
        assert len(metrics(sweep.trial(number), "resume")) == resumes
        assert [line["step"] for line in metrics(sweep.trial(number))] == list(range(1, STEPS + 1))


@pytest.fixture
def actor(tmp_path):
    path = tmp_path / "actor.py"
    path.write_text(ACTOR)
    return str(path)


def saved(run: Path) -> set[tuple[int, int]]:
    """Return (rank, step) of each time that one saved."""
    names = [path.name.split("-") for path in run.glob("saved-*")]
    return {(int(rank), int(step)) for _, rank, step in names}


def states(told: dict) -> list[str]:
    return [trial["state"] for trial in told["trials"]]


def test_the_last_task_of_an_array_requeues_itself_alone_and_a_cancelled_one_goes_on(
    tiny, slurm, tmp_path, actor
):
    sweep = Sweep(tiny, tmp_path, slurm, program=actor)
    process = sweep.start("--profile", str(sweep.profile), jobs=3)
    for number in range(3):
        sweep.await_steps(number, 20, process)
    handles = sweep.submitted()[0]
    # Its number is the array's own.
    assert slurm.job(handles["rates-002"])["JobId"] == handles["rates-002"].partition("_")[0]
    slurm("scancel", "--batch", "--signal=USR1", handles["rates-002"])
    slurm("scancel", handles["rates-000"])
    told = ended(process)
    assert states(told) == ["done"] * 3
    assert [len(saved(sweep.trial(number))) for number in range(3)] == [1, 0, 1]
    assert slurm.job(handles["rates-002"])["Restarts"] == "1"
    # The cancelled one is in another job, once the array has ended.
    assert [sorted(line) for line in sweep.submitted()] == [sorted(handles), ["rates-000"]]
    for number in range(3):
        assert len((sweep.trial(number) / "metrics.jsonl").read_text().splitlines()) == 100
        assert (sweep.trial(number) / "marked-profile").exists()


def test_an_array_whose_tasks_fail_is_taken_back(tiny, slurm, tmp_path, actor):
    rates = {"optimizer.lr": {"values": [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}}
    sweep = Sweep(tiny, tmp_path, slurm, program=actor, parameters=rates)
    process = sweep.start("--profile", str(sweep.profile), jobs=1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "3 trials failed one after the other" in errors
    assert "failed: such a rate" in errors
    until(lambda: not slurm("squeue", "-h").strip(), 60)
    assert len(list(sweep.folder.glob("logs/*.log"))) < 6


def test_ranks_that_srun_started_save(tiny, slurm, tmp_path, actor):
    recipe = str(tmp_path / "recipe.yaml")
    command = ["${env}", "srun", "python", "${program}", recipe, "${args_no_hyphens}"]
    drawn = {"optimizer.lr": {"min": 0.001, "max": 0.1}}
    sweep = Sweep(
        tiny, tmp_path, slurm, program=actor, command=command, parameters=drawn, method="bayes",
        run_cap=1,
    )  # fmt: skip
    process = sweep.start("--sbatch", "--nodes=2 --ntasks=2", jobs=1)
    sweep.await_steps(0, 20, process)
    slurm("scancel", "--batch", "--signal=USR1", sweep.submitted()[0]["rates-000"])
    assert states(ended(process)) == ["done"]
    assert {rank for rank, _ in saved(sweep.trial(0))} == {0, 1}
    assert len(sweep.submitted()) == 1
    assert (sweep.trial(0) / "marked-shell").exists()
