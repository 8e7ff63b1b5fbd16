"""A whole sweep over jobs that only write what a run would write."""

import fcntl
import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from restomod import cli
from restomod.errors import UserError
from restomod.sweep import control
from restomod.sweep.run import run_sweep
from restomod.tools.report.report import report
from tests.conftest import Tiny

EVALUATIONS = 6


class Act:
    """A job that logs one evaluation each time that it is asked, going on from what is there."""

    def __init__(self, folder: Path, log: Path, words: list[str], ending: str) -> None:
        self.folder, self.log, self.ending = folder, log, ending
        values = dict(word.split("=", 1) for word in words if "=" in word)
        self.lr = float(values["optimizer.lr"])
        self.told = self.ended = False

    def code(self) -> int | None:
        metrics = self.folder / "metrics.jsonl"
        (self.folder / "REQUEUE").unlink(missing_ok=True)
        self.folder.mkdir(exist_ok=True)
        done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        if self.told or (self.ending.startswith("stops") and done == 2):
            return self.leave(done, "SIGTERM")
        if self.ending == "fails":
            self.log.write_text("noise\nerror: the disk is full\nmake room\n")
            return 2
        if self.ending == "is stopped by hand" and done == 2:
            return self.leave(done, "STOP file")
        if self.ending == "diverges" and done == 2:
            (self.folder / "nonfinite").mkdir()
            return 2
        if done == EVALUATIONS:
            return 0
        loss = abs(self.lr - 0.003) * 100 + 1 / (done + 1)
        line = {
            "event": "eval",
            "time_s": 1.0,
            "step": done + 1,
            "domains": {"all": {"loss": loss}},
        }
        with metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return None

    def leave(self, step: int, reason: str) -> int:
        if self.ending == "stops once":
            self.ending = ""
        (self.folder / "REQUEUE").write_text(json.dumps({"step": step, "reason": reason}))
        return 75

    def stop(self) -> None:
        self.told = True


class Stage:
    """Starts acts; `endings` says of trials how they end if not well."""

    stops, together = True, 0

    def __init__(self, sweep_folder: Path, endings: dict[int, str]) -> None:
        self.folder, self.endings = sweep_folder, endings
        self.started: list[str] = []
        self.commands: list[list[str]] = []
        self.acts: list[Act] = []
        self.most_at_a_time = 0

    def start(self, tasks):
        return [self._start(task) for task in tasks]

    def withdraw(self):
        """Whatever was started acts."""

    def _start(self, task):
        task.log.parent.mkdir(exist_ok=True)
        ending = self.endings.get(task.number, "")
        if ending == "stops once":
            self.endings[task.number] = ""
        act = Act(task.run_folder, task.log, task.command, ending)
        self.started.append(task.name)
        self.commands.append(task.command)
        self.acts.append(act)
        return act


class Together(Stage):
    """Takes all trials at once, in waves."""

    stops, together = False, 100

    def __init__(self, sweep_folder: Path, endings: dict[int, str]) -> None:
        super().__init__(sweep_folder, endings)
        self.waves: list[list[str]] = []
        self.withdrawn = 0

    def start(self, tasks):
        self.waves.append([task.name for task in tasks])
        return super().start(tasks)

    def withdraw(self):
        self.withdrawn += 1


@pytest.fixture
def sweep(tiny: Tiny, tmp_path, monkeypatch):
    """Run a sweep of five learning rates on a stage; return code, output and stage."""
    monkeypatch.setattr(control, "POLL_S", 0.0)
    monkeypatch.chdir(Path(__file__).parents[3])
    recipe = tiny.write(tmp_path / "recipe.yaml", runs_dir=str(tmp_path))
    file = {
        "program": "train.py",
        "command": ["${env}", "python", "${program}", str(recipe), "seed=3", "${args_no_hyphens}"],
        "method": "grid",
        "metric": {"name": "eval/all/loss"},
        "parameters": {"optimizer.lr": {"values": [0.001, 0.002, 0.003, 0.004, 0.005]}},
    }

    def run(endings=None, jobs=1, stage=None, in_json=True, settings=None, **changes):
        path = tmp_path / "rates.yaml"
        path.write_text(yaml.safe_dump({**file, **changes}))
        stage = stage or Stage(tmp_path / "rates", endings or {})
        printed: list[str] = []

        def jobs_of(setting):
            if settings is not None:
                settings.append(setting)
            return stage

        code = run_sweep(path, jobs, in_json, printed.append, jobs_of)
        text = "".join(printed)
        return code, json.loads(text) if in_json else text, stage

    return run


def states(told):
    return {trial["trial"]: trial["state"] for trial in told["trials"]}


def test_all_trials_run_and_the_best_is_named(sweep, tmp_path):
    code, told, stage = sweep()
    assert code == 0
    assert [trial["state"] for trial in told["trials"]] == ["done"] * 5
    values = [trial["value"] for trial in told["trials"]]
    assert values == sorted(values)
    best = told["trials"][0]
    assert best["parameters"] == {"optimizer.lr": 0.003}
    assert told["best"] == best["trial"]
    assert best["readings"] == EVALUATIONS
    assert stage.commands[0] == [
        "/usr/bin/env", "python", "train.py", str(tmp_path / "recipe.yaml"), "seed=3",
        f"optimizer.lr={dict_of(told)[0]}", f"runs_dir={tmp_path / 'rates'}", "run_name=rates-000",
    ]  # fmt: skip
    page = (tmp_path / "rates" / "sweep.html").read_text()
    assert page.count('class="trial"') == 5
    code, text, stage = sweep(in_json=False)
    assert (code, stage.started) == (0, [])  # finished trials are not run again
    assert text.splitlines()[0].split() == [
        "trial",
        "state",
        "eval/all/loss",
        "optimizer.lr",
        "steps",
        "time",
    ]
    assert f"best: {tmp_path / 'rates' / 'rates-'}{told['best']:03d}  optimizer.lr=0.003" in text


def dict_of(told):
    return {trial["trial"]: trial["parameters"]["optimizer.lr"] for trial in told["trials"]}


def test_trials_known_beforehand_are_handed_over_at_once(sweep, tmp_path):
    stage = Together(tmp_path / "rates", {1: "stops once"})
    code, told, _ = sweep(stage=stage)
    assert (code, set(states(told).values())) == (0, {"done"})
    names = [f"rates-{n:03d}" for n in range(5)]
    assert stage.waves == [names, ["rates-001"]]  # which waits until no other runs
    assert stage.withdrawn == 0
    failing = Together(tmp_path / "worse", dict.fromkeys(range(3), "fails"))
    with pytest.raises(UserError, match="3 trials failed one after the other"):
        sweep(stage=failing, name="worse")
    assert failing.withdrawn == 1


@pytest.mark.parametrize(
    ("changes", "foreseen"),
    [
        ({}, True),
        ({"method": "random", "run_cap": 2}, True),
        ({"method": "bayes", "run_cap": 2}, False),
        ({"early_terminate": {"type": "hyperband", "min_iter": 2}}, False),
    ],
)
def test_trials_that_depend_on_others_are_not_foreseen(sweep, monkeypatch, changes, foreseen):
    monkeypatch.setattr("restomod.sweep.run._begin_folder", lambda *_: 1 / 0)
    drawn = {"optimizer.lr": {"values": [0.001, 0.002]}}
    settings = []
    with pytest.raises(ZeroDivisionError):
        sweep(settings=settings, parameters=drawn, **changes)
    assert [setting.foreseen for setting in settings] == [foreseen]


def test_no_more_jobs_than_allowed_run_at_a_time(sweep, monkeypatch):
    at_a_time = []
    look = control.Control._look

    def looking(self, running):
        at_a_time.append(len(self._running))
        look(self, running)

    monkeypatch.setattr(control.Control, "_look", looking)
    assert sweep(jobs=2)[0] == 0
    assert max(at_a_time) == 2


def test_a_stopped_sweep_goes_on_with_the_trials_that_it_had_begun(sweep, monkeypatch):
    look = control.Control._look
    looks = []

    def interrupted(self, running):
        looks.append(running)
        if len(looks) == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        look(self, running)

    monkeypatch.setattr(control.Control, "_look", interrupted)
    code, told, _ = sweep(jobs=2)
    assert code == 75
    begun = sorted(trial["trial"] for trial in told["trials"] if trial["state"] == "unfinished")
    assert begun == [0, 1]
    code, told, stage = sweep(jobs=2)
    assert code == 0
    assert stage.started[:2] == ["rates-000", "rates-001"]
    assert len(set(stage.started)) == 5
    assert set(states(told).values()) == {"done"}


def test_the_worse_trials_are_stopped_early(sweep, tmp_path):
    stop = {"type": "hyperband", "min_iter": 2}
    code, told, _ = sweep(early_terminate=stop)
    assert code == 0
    assert told["trials"][0]["parameters"] == {"optimizer.lr": 0.003}
    stopped = [trial for trial in told["trials"] if trial["state"] == "stopped early"]
    assert stopped
    for trial in stopped:
        assert 2 <= trial["readings"] < EVALUATIONS
        assert not (Path(trial["run_folder"]) / "REQUEUE").exists()
    assert 'class="trial stopped"' in (tmp_path / "rates" / "sweep.html").read_text()
    assert sweep(early_terminate=stop)[2].started == []


def test_impossible_combinations_are_told_and_passed_over(sweep):
    parameters = {"model.heads": {"values": [1, 2, 3]}, "optimizer.lr": {"value": 0.003}}
    code, told, stage = sweep(parameters=parameters)
    assert code == 0
    by_heads = {trial["parameters"]["model.heads"]: trial for trial in told["trials"]}
    assert by_heads[3]["state"] == "impossible"
    assert "model.heads: 3 heads do not cut hidden_size 32" in by_heads[3]["note"]
    assert len(stage.started) == 2
    assert sweep(parameters=parameters)[2].started == []


def test_trials_that_failed_are_tried_again_by_the_next_command(sweep):
    code, told, _ = sweep({1: "fails"})
    assert code == 0
    failed = next(trial for trial in told["trials"] if trial["trial"] == 1)
    assert (failed["state"], failed["note"]) == ("failed", "the disk is full\nmake room")
    code, told, stage = sweep()
    assert stage.started == ["rates-001"]
    assert set(states(told).values()) == {"done"}


def test_a_sweep_ends_when_all_fails(sweep):
    stage = None
    with pytest.raises(UserError, match="3 trials failed one after the other"):
        sweep(dict.fromkeys(range(5), "fails"))
    code, told, stage = sweep()
    assert (code, set(states(told).values())) == (0, {"done"})
    assert len(stage.started) == 5


def test_a_diverged_trial_is_no_failure_and_not_tried_again(sweep):
    code, told, _ = sweep(dict.fromkeys((0, 1, 2), "diverges"))
    assert code == 0
    assert [states(told)[n] for n in range(5)] == ["diverged"] * 3 + ["done"] * 2
    assert sweep()[2].started == []


def test_a_trial_that_wants_to_go_on_is_started_again_unless_it_gets_nowhere(sweep):
    code, told, stage = sweep({0: "stops once", 1: "stops", 2: "is stopped by hand"})
    assert code == 0
    assert stage.started.count("rates-000") == 2
    assert stage.started.count("rates-001") == 2
    assert stage.started.count("rates-002") == 1
    ended = {trial["trial"]: (trial["state"], trial["note"]) for trial in told["trials"]}
    assert ended[0] == ("done", "")
    assert ended[1] == ("failed", "was stopped twice after step 2 (SIGTERM)")
    assert ended[2] == ("stopped early", "by a STOP file")


def test_a_changed_file_is_refused_but_for_more_trials(sweep):
    drawn = {"optimizer.lr": {"min": 0.001, "max": 0.005}}
    sweep(method="random", parameters=drawn, run_cap=2)
    assert len(sweep(method="random", parameters=drawn, run_cap=3)[1]["trials"]) == 3
    drawn["optimizer.lr"]["max"] = 0.05
    with pytest.raises(UserError, match=r"parameters: was .*0\.005.*is.*0\.05") as refusal:
        sweep(method="random", parameters=drawn, run_cap=3)
    assert "choose another name" in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"program": "trian.py"}, "program: trian.py: no such file"),
        ({"metric": {"name": "eval/code/loss"}}, "evaluates no code; there is all, prose"),
        ({"parameters": {"optimizer.lrr": {"values": [1, 2]}}}, "did you mean `optimizer.lr`?"),
        ({"parameters": {"optimizer.lr": {"values": [-1, 0]}}}, "no combination that was looked"),
        ({"parameters": {"tokenizer": {"value": "none"}}}, "no such tokenizer"),
    ],
)
def test_mistakes_are_told_before_anything_is_begun(sweep, tmp_path, changes, message):
    with pytest.raises(UserError) as refusal:
        sweep(**changes)
    assert message in str(refusal.value)
    assert not (tmp_path / "rates").exists()


def test_the_folder_of_a_run_is_no_sweeps(sweep, tmp_path):
    (tmp_path / "rates").mkdir()
    (tmp_path / "rates" / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="is a run's folder"):
        sweep()


def test_the_clusters_profile_is_taken_where_none_is_named(tmp_path, monkeypatch, capsys):
    profiles = tmp_path / "launchers" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "slurm.yaml").write_text("slurm: {partiton: gpu}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["restomod", "sweep", "my.yaml", "--on", "slurm"])
    assert cli.main() == 2
    assert "did you mean `slurm.partition`" in capsys.readouterr().err
    (tmp_path / "ours.yaml").write_text("time_limt: 4h")
    words = ["restomod", "sweep", "my.yaml", "--on", "slurm", "--profile", "ours.yaml"]
    monkeypatch.setattr("sys.argv", words)
    assert cli.main() == 2
    assert "did you mean `time_limit`" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--sbatch=--gres=gpu:1", "--profile=ours.yaml"])
def test_options_of_slurm_need_slurm(monkeypatch, capsys, option):
    monkeypatch.setattr("sys.argv", ["restomod", "sweep", "my.yaml", option])
    assert cli.main() == 2
    name = option.partition("=")[0]
    assert f"{name}: nothing reads it without --on slurm" in capsys.readouterr().err


def test_a_trial_that_was_judged_and_not_seen_to_stop_is_not_run_again(sweep, monkeypatch):
    stop = {"type": "hyperband", "min_iter": 2}

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Act, "stop", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(early_terminate=stop)
    code, told, stage = sweep(early_terminate=stop)
    assert code == 0
    judged = next(trial for trial in told["trials"] if trial["state"] == "stopped early")
    assert judged["readings"] == 2
    assert Path(judged["run_folder"]).name not in stage.started


def test_the_page_can_be_written_anew_while_another_process_has_the_sweep(sweep, tmp_path):
    sweep(endings={1: "fails"})
    folder = tmp_path / "rates"
    written = (folder / "sweep.html").read_text()
    (folder / "sweep.html").unlink()
    journal = (folder / "optuna.journal").read_bytes()
    with (folder / "optuna.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "wor')  # of a process that is writing
    with (folder / "sweep.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert report([folder], None) == folder / "sweep.html"
    assert (folder / "sweep.html").read_text() == written
    assert (folder / "optuna.journal").read_bytes().startswith(journal)
    (folder / "optuna.journal").unlink()
    with pytest.raises(UserError, match="journal cannot be read"):
        report([folder], None)
