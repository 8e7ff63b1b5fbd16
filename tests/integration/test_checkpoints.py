"""A whole run's checkpoints: which stay, what is averaged at the end, what takes the average."""

import json

import pytest

from restomod import load_model
from restomod.train.checkpoints.manifest import newest_checkpoint
from tests.conftest import metrics


@pytest.fixture(scope="module")
def run(tiny, train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    recipe = tiny.write(
        folder / "recipe.yaml",
        runs_dir=str(folder),
        evaluation__every_steps=2,
        checkpoint={
            "every_steps": 2,
            "keep": 1,
            "keep_every": 10 * 4 * 512,
            "keep_best": 1,
            "average_best": 2,
        },
    )
    code, text = train(recipe, "run_name=run")
    assert code == 0, text
    return recipe, folder / "run", text


def test_rules_leave_the_newest_the_slotted_and_the_best(run):
    _, folder, _ = run
    losses = {line["step"]: line["domains"]["all"]["loss"] for line in metrics(folder, "eval")}
    best = sorted(losses, key=lambda step: (losses[step], -step))[:2]
    there = {int(path.name[5:]) for path in (folder / "checkpoints").iterdir()}
    assert there == {10, 20, 24, *best}


def test_manifest_says_what_the_checkpoint_is_of(run):
    _, folder, _ = run
    _, manifest = newest_checkpoint(folder)
    assert manifest["step"] == 24
    assert manifest["slots"] == 24 * 4 * 512
    assert manifest["phase"] == "pretrain"
    assert manifest["evaluation"]["step"] == 24
    domains = metrics(folder, "eval")[-1]["domains"]
    assert manifest["evaluation"]["domains"] == domains


def test_every_save_is_in_the_metrics_with_its_stall(run):
    _, folder, _ = run
    events = metrics(folder, "checkpoint")
    assert [event["step"] for event in events] == list(range(2, 25, 2))
    assert all(0 < event["stall_s"] <= event["seconds"] for event in events)


def test_end_of_the_run_averages_and_a_new_run_starts_from_the_average(run, train):
    recipe, folder, text = run
    averaged = json.loads((folder / "averaged" / "manifest.json").read_text())["averaged"]
    assert averaged[-1] == 24
    assert len(averaged) == 3
    assert f"averaged: the mean of the weights at steps {averaged[0]}, " in text
    mean = sum(
        load_model(folder / "checkpoints" / f"step-{step:08d}").encoder.embedding.weight
        for step in averaged
    ) / len(averaged)
    assert (load_model(folder / "averaged").encoder.embedding.weight - mean).abs().max() < 1e-6
    code, text = train(
        recipe,
        "run_name=second",
        f"init.weights={folder}/averaged",
        "phases.0.slots=2048",
        "phases.0.schedule.warmup=0",
        "phases.0.schedule.decay=0",
        "checkpoint.average_best=0",
    )
    assert code == 0, text
    first = metrics(folder.with_name("second"))[0]["loss"]
    assert first < metrics(folder)[0]["loss"] - 0.3
