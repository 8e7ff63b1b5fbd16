"""The mean of checkpoints, and what takes it."""

import errno
import sys
import time

import pytest
import torch

from restomod import cli, load_model
from restomod.config import CheckpointConfig, EvaluationConfig, Recipe, StreamConfig
from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.recipe import save_recipe
from restomod.tools.average import average_at_end, average_run
from restomod.tools.export.export import export_run
from restomod.train.checkpoints.manifest import FORMAT, checkpoint_folder
from restomod.train.checkpoints.saving import Snapshot, remove, write_checkpoint
from restomod.train.checkpoints.store import Store

TINY = {"layers": 2, "hidden_size": 32, "heads": 2, "intermediate_size": 48, "vocab_size": 64}
TINY |= {"pad_id": 3, "cls_id": 1, "sep_id": 2}


def model_of(step):
    torch.manual_seed(step)
    return MaskedLM(EncoderConfig(**TINY))


def save(run, step, loss=None, phase="decay", model=None):
    model = model or model_of(step)
    about = {
        "format": FORMAT,
        "step": step,
        "slots": step * 100,
        "phase": phase,
        "evaluation": loss and {"step": step, "domains": {"all": {"loss": loss}}},
    }
    parts = {"model": model.state_dict(), "optimizer": {"moment": torch.zeros(10)}}
    shape = {**TINY, "hidden_size": model.config.hidden_size}
    loader = {"rows": 0, "lanes": {}}
    snapshot = Snapshot(step, parts, loader, shape, about, time.perf_counter())
    write_checkpoint(snapshot, checkpoint_folder(run, step), None)


@pytest.fixture
def recipe(tmp_path):
    recipe = Recipe(
        run_name="run",
        runs_dir=str(tmp_path),
        tokenizer="tokenizer",
        checkpoint=CheckpointConfig(average_best=2),
        evaluation=EvaluationConfig(streams={"x": StreamConfig(path="x")}),
    )
    recipe.run_folder.mkdir()
    return recipe


@pytest.fixture
def run(recipe):
    """A run with checkpoints of two phases; the best of all is in the first."""
    folder = recipe.run_folder
    save(folder, 1, 0.5, "pretrain")
    for step, loss in ((2, 2.0), (3, 1.0), (4, 1.5), (5, 3.0)):
        save(folder, step, loss)
    return folder


def assert_mean(folder, steps):
    for name, weight in load_model(folder).state_dict().items():
        mean = torch.stack([model_of(step).state_dict()[name] for step in steps]).mean(0)
        torch.testing.assert_close(weight, mean, atol=1e-7, rtol=1e-6)


def test_newest_and_best_are_averaged(run, recipe, tmp_path):
    text = average_run(run, recipe, tmp_path / "last", last=2)
    assert text.endswith("steps 4, 5")
    assert_mean(tmp_path / "last", (4, 5))
    average_run(run, recipe, tmp_path / "best", best_count=3)
    assert_mean(tmp_path / "best", (2, 3, 4))


def test_end_of_a_run_averages_the_last_and_the_best_others_of_its_phase(run, recipe):
    assert average_at_end(run, recipe).endswith("steps 3, 4, 5")
    assert_mean(run / "averaged", (3, 4, 5))


def test_mean_of_one_is_that_one_and_replaces_an_earlier_average(run, recipe):
    average_run(run, recipe, run / "averaged", last=4)
    average_run(run, recipe, run / "averaged", last=1)
    weights = load_model(run / "averaged").state_dict()
    assert all(torch.equal(w, weights[name]) for name, w in model_of(5).state_dict().items())
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_damaged_checkpoint_is_not_averaged(run, recipe, tmp_path):
    path = next((checkpoint_folder(run, 4) / "state").glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="step-00000004: the checkpoint cannot be used"):
        average_run(run, recipe, tmp_path / "out", last=2)
    assert not (tmp_path / "out").exists()


def test_too_few_checkpoints_and_folders_of_others_are_refused(run, recipe, tmp_path):
    with pytest.raises(UserError, match="6 checkpoints are to be averaged, 5 are there"):
        average_run(run, recipe, tmp_path / "out", last=6)
    with pytest.raises(UserError, match="4 are there with a held-out loss in the last phase"):
        average_run(run, recipe, tmp_path / "out", best_count=5)
    with pytest.raises(UserError, match="is no average"):
        average_run(run, recipe, run, last=2)


def test_different_models_are_refused(run, recipe, tmp_path):
    save(run, 6, 1.0, model=MaskedLM(EncoderConfig(**{**TINY, "hidden_size": 64})))
    with pytest.raises(UserError, match="step-00000006: is another model"):
        average_run(run, recipe, tmp_path / "out", last=2)


def test_a_full_disk_leaves_nothing_of_the_average(run, recipe, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("restomod.tools.average.write_durably", full)
    (tmp_path / "made").mkdir()
    with pytest.raises(UserError, match=r"the disk is full: .* The average is not written"):
        average_run(run, recipe, tmp_path / "made" / "out", last=2)
    assert not [*(tmp_path / "made").iterdir()]


def test_checkpoints_that_are_in_the_store_alone_are_fetched_and_not_kept(run, recipe, tmp_path):
    save(run, 6, model=MaskedLM(EncoderConfig(**{**TINY, "hidden_size": 64})))
    recipe.store = str(tmp_path / "store")
    store = Store(recipe.store, "run")
    for file in sorted(run.rglob("*")):
        if file.is_file():
            store.put(file, file.relative_to(run).as_posix())
    for step in (1, 2, 3, 4, 6):
        remove(checkpoint_folder(run, step))
    average_run(run, recipe, tmp_path / "out", best_count=3)
    assert_mean(tmp_path / "out", (2, 3, 4))
    with pytest.raises(UserError, match="is another model"):
        average_run(run, recipe, tmp_path / "out", last=2)
    assert [path.name for path in run.iterdir()] == ["checkpoints"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000005"]


def test_command_averages_and_the_average_exports(run, recipe, monkeypatch, capsys):
    recipe.data.streams = {"x": StreamConfig(path="x")}
    monkeypatch.setattr("restomod.tools.runs.load_recipe", lambda _: recipe)
    save_recipe(recipe, run / "config.yaml")
    for words, steps in (
        (["average", run], (2, 3, 4)),
        (["average", run, "--last", 2], (4, 5)),
        (["average", run, "--best", 2], (3, 4)),
    ):
        monkeypatch.setattr(sys, "argv", ["restomod", *map(str, words)])
        assert cli.main() == 0
        assert capsys.readouterr().out.endswith(f"steps {', '.join(map(str, steps))}\n")
        assert_mean(run / "averaged", steps)
    assert str(run / "exported-averaged") in export_run(run / "averaged")
    assert_mean(run / "exported-averaged", (3, 4))
    assert str(run / "exported-step-00000002") in export_run(run, step=2)
    assert_mean(run / "exported-step-00000002", (2,))
    with pytest.raises(UserError, match=r"step-00000009: no such folder.*; there is step-0"):
        export_run(run, step=9)
