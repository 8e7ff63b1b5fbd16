"""Whole runs with the optimizer that the recipe names."""

import pytest

from tests.conftest import Tiny, Trainings, metrics


@pytest.fixture(scope="module")
def unbroken(tiny: Tiny, train: Trainings, tmp_path_factory: pytest.TempPathFactory):
    recipe = tiny.write(
        tmp_path_factory.mktemp("recipe") / "recipe.yaml",
        optimizer__name="muon",
        optimizer__lr=2e-3,
    )
    code, text = train(recipe, "run_name=muon")
    assert code == 0, text
    return recipe, metrics(tiny.folder / "runs" / "muon")


def test_muon_learns(unbroken):
    _, lines = unbroken
    assert len(lines) == 24
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3


def test_muon_goes_on_exactly_after_a_kill(tiny, train, unbroken):
    recipe, expected = unbroken
    folder = tiny.folder / "runs" / "muon-killed"
    code, _ = train(recipe, "run_name=muon-killed", kill_when=lambda: len(metrics(folder)) >= 8)
    assert code == -9
    code, text = train(recipe, "run_name=muon-killed")
    assert code == 0, text
    for line, other in zip(metrics(folder), expected, strict=True):
        assert (line["loss"], line["grad_norm"]) == (other["loss"], other["grad_norm"])


def test_muon_on_two_ranks_has_the_same_losses(tiny, train, unbroken):
    recipe, expected = unbroken
    code, text = train(recipe, "run_name=muon-two", world_size=2)
    assert code == 0, text
    for line, other in zip(metrics(tiny.folder / "runs" / "muon-two"), expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-4)
