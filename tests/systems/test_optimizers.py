"""Whole runs with the optimizer that the recipe names."""

import pytest

from tests.conftest import Tiny, Trainings, metrics

CHANGES: dict[str, dict[str, object]] = {
    "muon": {"optimizer__lr": 2e-3},
    "adamw": {"optimizer__lr": 2e-3, "optimizer__clip_norm": 1.8},
}


@pytest.fixture(scope="module", params=CHANGES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def unbroken(name: str, tiny: Tiny, train: Trainings, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe = tiny.write(path, optimizer__name=name, **CHANGES[name])
    code, text = train(recipe, f"run_name={name}")
    assert code == 0, text
    return recipe, metrics(tiny.folder / "runs" / name)


def test_it_learns(unbroken):
    _, lines = unbroken
    assert len(lines) == 24
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3


def test_adamw_says_which_steps_were_clipped(name, unbroken):
    if name == "adamw":
        rates = [(line["clip_rate"], line["grad_norm"] > 1.8) for line in unbroken[1]]
        assert all(rate == float(above) for rate, above in rates)
        assert {above for _, above in rates} == {True, False}


def test_it_goes_on_exactly_after_a_kill(name, tiny, train, unbroken):
    recipe, expected = unbroken
    folder = tiny.folder / "runs" / f"{name}-killed"
    changes = f"run_name={name}-killed"
    code, _ = train(recipe, changes, kill_when=lambda: len(metrics(folder)) >= 8)
    assert code == -9
    code, text = train(recipe, changes)
    assert code == 0, text
    for line, other in zip(metrics(folder), expected, strict=True):
        assert (line["loss"], line["grad_norm"]) == (other["loss"], other["grad_norm"])


def test_two_ranks_have_the_same_losses(name, tiny, train, unbroken):
    recipe, expected = unbroken
    code, text = train(recipe, f"run_name={name}-two", world_size=2)
    assert code == 0, text
    for line, other in zip(metrics(tiny.folder / "runs" / f"{name}-two"), expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-4)


def test_a_fork_to_an_optimizer_of_other_moments_says_so(name, tiny, train, unbroken):
    recipe, _ = unbroken
    other = "stable_adamw" if name == "muon" else "muon"
    words = (f"run_name={name}-fork", f"optimizer.name={other}", "optimizer.clip_norm=0")
    code, text = train(recipe, "--fork", f"{tiny.folder}/runs/{name}@20", *words, world_size=2)
    assert code == 2, text
    assert "does not hold what the recipe needs now that it differs in optimizer." in text
    assert "Missing key in checkpoint state_dict: optimizer.state." in text
    assert "Traceback" not in text
