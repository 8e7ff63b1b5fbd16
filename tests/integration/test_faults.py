"""A run that is stopped, or meets what it cannot learn from, goes on as if nothing had happened."""

import contextlib
import errno
import json
import os
import signal
import time
import weakref

import pytest
import torch

from restomod.commands import read_recipe
from restomod.data import loader
from restomod.data.lanes import Lane
from restomod.data.sources import open_sources
from restomod.errors import UserError
from restomod.train import builder
from restomod.train.builder import build_model, prepare_run, train
from restomod.train.faults.ledger import Ledger
from restomod.train.faults.stopping import Stopper, StopRequested
from restomod.train.module import TrainedModel
from tests.conftest import Tiny, metrics
from tests.integration.test_resume import exactly


@pytest.fixture(scope="module", autouse=True)
def process_as_it_was():
    """Runs inside this process set variables and start a process group."""
    before = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def recipe(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory):
    return tiny.write(tmp_path_factory.mktemp("recipe") / "recipe.yaml")


def here(recipe, *words, stopper=None):
    """Train in this process; return the run folder."""
    loaded = read_recipe([str(recipe), *words], 1, 1)
    train(prepare_run(loaded, open_sources(loaded)), time.monotonic(), stopper or Stopper())
    return loaded.run_folder


@pytest.fixture(scope="module")
def unbroken(recipe):
    return here(recipe, "run_name=undisturbed")


class StopsAt(Stopper):
    """Is asked to stop before a rank asks for the n-th time."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def agree(self) -> str:
        self.left -= 1
        if self.left == 0:
            self.requested = "SIGTERM"
        return super().agree()


def step_of_newest(folder):
    return max(int(path.name[5:]) for path in (folder / "checkpoints").iterdir())


def test_sigterm_saves_and_asks_for_requeue(tiny, train, recipe, unbroken):
    folder = tiny.folder / "runs" / "terminated"
    code, text = train(
        recipe, "run_name=terminated",
        kill_when=lambda: len(metrics(folder)) >= 7, send=signal.SIGTERM,
    )  # fmt: skip
    assert code == 75, text
    assert "SIGTERM: the run saves after this step and stops" in text
    requeue = json.loads((folder / "REQUEUE").read_text())
    assert f"saved at step {requeue['step']}; the same command goes on" in text
    assert requeue == {"reason": "SIGTERM", "step": step_of_newest(folder)}
    assert len(metrics(folder)) == requeue["step"]
    code, text = train(recipe, "run_name=terminated")
    assert code == 0, text
    assert not (folder / "REQUEUE").exists()
    assert metrics(folder, "resume")[-1]["from_step"] == requeue["step"]
    assert exactly(folder) == exactly(unbroken)


def test_signal_to_one_rank_stops_all_at_the_same_step(tiny, train, recipe, unbroken):
    folder = tiny.folder / "runs" / "one-told"
    code, text = train(
        recipe, "run_name=one-told", world_size=2,
        kill_when=lambda: len(metrics(folder)) >= 6, send=signal.SIGUSR1, to=range(1, 2),
    )  # fmt: skip
    assert code == 75, text
    assert json.loads((folder / "REQUEUE").read_text())["reason"] == "SIGUSR1"
    code, text = train(recipe, "run_name=one-told", world_size=2)
    assert code == 0, text
    expected = exactly(unbroken)
    for step, line in exactly(folder).items():
        assert line["data_digest"] == expected[step]["data_digest"]
        if step <= 20:
            assert line["loss"] == pytest.approx(expected[step]["loss"], abs=1e-5)


def test_stop_file_and_time_limit_stop_the_run(tiny, train, recipe, unbroken):
    folder = tiny.folder / "runs" / "limited"
    code, text = train(recipe, "run_name=limited", "stop_after=0.01s")
    assert code == 75, text
    assert json.loads((folder / "REQUEUE").read_text()) == {"reason": "stop_after", "step": 0}
    (folder / "STOP").touch()
    code, text = train(recipe, "run_name=limited")
    assert code == 75, text
    assert json.loads((folder / "REQUEUE").read_text())["reason"] == "STOP file"
    code, text = train(recipe, "run_name=limited")
    assert code == 0, text
    assert exactly(folder) == exactly(unbroken)
    # Stopped before it has gone on.
    code, text = train(recipe, "run_name=limited", "phases.0.slots=100K", "stop_after=0.01s")
    assert code == 75, text
    assert json.loads((folder / "REQUEUE").read_text()) == {"reason": "stop_after", "step": 24}


@pytest.mark.parametrize("asked", [1, 5, 12, 13, 20])
def test_stop_at_any_time_loses_nothing(recipe, unbroken, asked):
    """Asked between steps, and in the evaluation after step 10, which is made up for."""
    name = f"run_name=asked-{asked}"
    with pytest.raises(StopRequested):
        here(recipe, name, stopper=StopsAt(asked))
    folder = here(recipe, name)
    assert exactly(folder) == exactly(unbroken)
    evaluations = [{k: line[k] for k in ("step", "domains")} for line in metrics(folder, "eval")]
    expected = [{k: line[k] for k in ("step", "domains")} for line in metrics(unbroken, "eval")]
    assert evaluations == expected


def test_stop_ends_a_wait_for_data(recipe, unbroken, monkeypatch):
    next_row = Lane.next_row

    def stalls(self):
        if (self._number, self._rows) == (3, 9):
            time.sleep(3)  # all rows before this one are trained on
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(60)
        return next_row(self)

    with monkeypatch.context() as patch:
        patch.setattr(loader, "MESSAGE_TOKENS", 1)
        patch.setattr(Lane, "next_row", stalls)
        with Stopper().listening() as stopper, pytest.raises(StopRequested) as stop:
            here(recipe, "run_name=stalled", stopper=stopper)
    assert stop.value.step == 9
    folder = here(recipe, "run_name=stalled")
    assert metrics(folder, "resume")[-1]["from_step"] == 9
    assert exactly(folder) == exactly(unbroken)


@contextlib.contextmanager
def disturbed(monkeypatch, steps, factor):
    """Multiply the loss of these steps, and so their gradients."""
    original = TrainedModel.loss

    def loss(self, outputs, batch):
        value = original(self, outputs, batch)
        if int(batch["row_ids"][0]) // 4 + 1 in steps:
            self.sums = self.sums * torch.tensor([factor, 1.0, 1.0])
            value = value * factor
        return value

    with monkeypatch.context() as patch:
        patch.setattr(TrainedModel, "loss", loss)
        yield


def test_nonfinite_steps_are_skipped_and_counted(recipe, unbroken, monkeypatch):
    with disturbed(monkeypatch, {7, 8}, float("nan")):
        folder = here(recipe, "run_name=nan")
    lines, expected = metrics(folder), metrics(unbroken)
    assert [line["loss"] for line in lines[:6]] == [line["loss"] for line in expected[:6]]
    assert lines[6]["loss"] is None
    assert [line["skipped_steps"] for line in lines[4:10]] == [0, 0, 1, 2, 2, 2]
    assert all(line["loss"] is not None for line in lines[8:])
    skipped = metrics(folder, "skipped_step")
    assert [(line["step"], line["reason"], line["rows"]) for line in skipped] == [
        (7, "nonfinite", 4),
        (8, "nonfinite", 4),
    ]
    assert [line["data_digest"] for line in skipped] == [
        line["data_digest"] for line in expected[6:8]
    ]


def test_too_many_nonfinite_steps_stop_the_run_with_a_checkpoint(recipe, unbroken, monkeypatch):
    words = ("run_name=nan-stop", "faults.nonfinite_steps=3")
    with (
        disturbed(monkeypatch, set(range(7, 30)), float("inf")),
        pytest.raises(UserError, match="3 steps in a row, 7 to 9, are not finite"),
    ):
        here(recipe, *words)
    folder = unbroken.parent / "nan-stop"
    study = json.loads((folder / "nonfinite" / "step-00000009.json").read_text())
    assert [entry["step"] for entry in study] == [7, 8, 9]
    assert study[0]["first_row"] == 24
    assert step_of_newest(folder) == 9
    assert [line["step"] for line in metrics(folder)] == list(range(1, 10))
    here(recipe, *words)  # goes on, the disturbance being over
    assert [line["step"] for line in metrics(folder)] == list(range(1, 25))
    assert metrics(folder)[-1]["skipped_steps"] == 3


SPIKES = ("faults.spikes.window_steps=8", "faults.spikes.threshold=30")


def test_spike_is_skipped(recipe, unbroken, monkeypatch):
    words = ("run_name=spike", *SPIKES, "faults.spikes.action=skip")
    with disturbed(monkeypatch, {14}, 100.0):
        folder = here(recipe, *words)
    lines = metrics(folder)
    skipped = metrics(folder, "skipped_step")
    assert [(line["step"], line["reason"]) for line in skipped] == [(14, "spike")]
    assert skipped[0]["deviations"] > 30
    assert lines[13]["loss"] > 100
    assert lines[14]["loss"] == pytest.approx(metrics(unbroken)[14]["loss"], abs=0.1)
    assert exactly(folder) != exactly(unbroken)


def test_spike_rolls_back_and_its_rows_are_not_learned_from_again(recipe, unbroken, monkeypatch):
    words = (*SPIKES, "faults.spikes.action=rollback")
    models, kept = [], []

    def build(*arguments):
        kept.append([model() is not None for model in models])
        model = build_model(*arguments)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(builder, "build_model", build)
    with disturbed(monkeypatch, {14}, 100.0):
        folder = here(recipe, "run_name=rollback", *words)
    assert kept == [[], [False]]  # the memory of one model is enough
    (rollback,) = metrics(folder, "rollback")
    assert (rollback["step"], rollback["spike_step"], rollback["first_row"]) == (10, 14, 52)
    (entry,) = json.loads((folder / "ledger.json").read_text())
    assert (entry["first_row"], entry["rows"], entry["reason"]) == (52, 4, "spike")
    skipped = metrics(folder, "skipped_step")
    assert [(line["step"], line["reason"]) for line in skipped] == [(14, "ledger")]
    assert [line["step"] for line in metrics(folder)] == list(range(1, 25))

    # An unbroken run with the same ledger, its disturbance included.
    given = unbroken.parent / "given"
    given.mkdir()
    (given / "ledger.json").write_text(json.dumps([entry]))
    with disturbed(monkeypatch, {14}, 100.0):
        here(recipe, "run_name=given", *words)
    assert exactly(given) == exactly(folder)

    # A resume keeps the ledger, also where the folder's is lost.
    (folder / "ledger.json").unlink()
    with disturbed(monkeypatch, {14}, 100.0):
        here(recipe, "run_name=rollback", *words, "phases.0.slots=53_248")
    manifest = json.loads((folder / "checkpoints" / "step-00000026" / "manifest.json").read_text())
    assert manifest["health"]["ledger"] == [entry]


def test_full_disk_when_a_spike_is_recorded_is_the_users_to_mend(recipe, unbroken, monkeypatch):
    def full(self, entry, write):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Ledger, "add", full)
    words = ("run_name=no-room", *SPIKES, "faults.spikes.action=rollback")
    with disturbed(monkeypatch, {14}, 100.0), pytest.raises(UserError, match="the disk is full"):
        here(recipe, *words)


def test_rollbacks_leave_out_as_many_steps_as_asked_and_end_somewhere(
    recipe, unbroken, monkeypatch
):
    words = (*SPIKES, "faults.spikes={action: rollback, rollback_steps: 2, max_rollbacks: 2}")
    with (
        disturbed(monkeypatch, set(range(14, 30)), 100.0),
        pytest.raises(UserError, match="after 2 roll-backs"),
    ):
        here(recipe, "run_name=many", *words)
    lines = metrics(unbroken.parent / "many", "rollback")
    assert [(line["spike_step"], line["rows"]) for line in lines] == [(14, 8), (16, 8)]


def test_profile_is_written(recipe, unbroken):
    folder = here(recipe, "run_name=profiled", "profile.steps=[2,4]")
    assert [path.name for path in (folder / "profile").iterdir()] == ["trace-rank-00000.json.gz"]
    assert exactly(folder) == exactly(unbroken)
