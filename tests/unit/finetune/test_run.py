import json

import pytest

from restomod.errors import UserError
from restomod.finetune import run
from restomod.finetune.config import FinetuneConfig
from restomod.interrupts import Interrupts
from restomod.recipe import flatten


def test_later_seeds_start_from_the_checkpoint_that_the_first_one_did(tmp_path, monkeypatch):
    checkpoints = [tmp_path / "run" / "checkpoints" / str(n) for n in (5, 9)]
    for path in checkpoints:
        path.mkdir(parents=True)
    newest = iter([(checkpoints[0], {}), None])
    monkeypatch.setattr(run, "newest_checkpoint", lambda _: next(newest))
    config, out = FinetuneConfig(model=str(tmp_path / "run")), tmp_path / "out"
    source = run._source(config, out)
    assert source == checkpoints[0]

    class Task:
        digest = "a"

    run._begin(config, out, source, Task())
    config.seeds = [17, 18]
    assert run._source(config, out) == checkpoints[0]
    Task.digest = "b"
    with pytest.raises(UserError, match="begun with other data"):
        run._begin(config, out, source, Task())
    checkpoints[0].rmdir()
    with pytest.raises(UserError, match="which is gone"):
        run._source(config, out)
    with pytest.raises(UserError, match="holds no whole checkpoint yet"):
        run._source(config, tmp_path / "other")
    with pytest.raises(UserError, match="no such folder"):
        run._source(FinetuneConfig(model=str(tmp_path / "none")), tmp_path / "other")


def test_what_is_done_is_told_without_training_and_other_settings_are_refused(tmp_path):
    config = FinetuneConfig(model="gone", out=str(tmp_path), seeds=[2, 1])
    scores = [run.Score(n, "accuracy", n / 10, {"accuracy": n / 10}) for n in (1, 2, 3)]
    begun = {"config": flatten(config), "source": "gone", "data_digest": "a"}
    (tmp_path / "config.json").write_text(json.dumps(begun))
    (tmp_path / "results.json").write_text(
        json.dumps({"seeds": [vars(s) for s in scores], "data": {"majority": {"accuracy": 0.0625}}})
    )
    assert run.finetune(config, Interrupts()) == [scores[1], scores[0]]
    text = run.describe(config, [scores[1], scores[0]])
    assert text.splitlines()[1].split() == ["2", "0.2000"]
    assert "mean         0.1500" in text
    assert "majority     0.0625" in text
    config.training.lr = 1.0
    with pytest.raises(UserError, match=r"training.lr was 8e-05, is 1.0. Name another `out`"):
        run.finetune(config, Interrupts())


def test_several_ranks_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="runs in one process"):
        run.finetune(FinetuneConfig(), Interrupts())


def test_the_best_seeds_model_is_kept_and_the_others_go(tmp_path):
    for seed in (1, 2):
        (tmp_path / f"seed-{seed}" / "model").mkdir(parents=True)
        (tmp_path / f"seed-{seed}" / "model" / "name").write_text(str(seed))
    for _ in range(2):  # as if killed before the results were written
        run._keep_model(tmp_path, 2)
        assert (tmp_path / "model" / "name").read_text() == "2"
        assert not [*tmp_path.glob("seed-*/model")]
