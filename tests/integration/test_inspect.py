"""`restomod inspect` shows what a run trains on, from its checkpoints where there are some."""

import dataclasses
import json

import pytest

from restomod.config import StartConfig
from restomod.data.loader import Loader
from restomod.data.sources import open_sources
from restomod.errors import UserError
from restomod.recipe import load_recipe
from restomod.tools.inspect import inspect_steps
from restomod.train.guards import fingerprint, state_before
from tests.conftest import metrics


@pytest.fixture(scope="module")
def recipe(tiny, train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspected")
    path = tiny.write(folder / "recipe.yaml", runs_dir=str(folder), run_name="run")
    code, text = train(path)
    assert code == 0, text
    return load_recipe([path], ["data.workers=0"])


def lines(recipe, first, last, world_size=1):
    return [json.loads(line) for line in inspect_steps(recipe, first, last, world_size, True)]


@pytest.mark.parametrize("world_size", [1, 4])
def test_it_goes_on_from_the_checkpoint_before(recipe, world_size, monkeypatch):
    begun = []
    original = Loader.__init__

    def counted(self, recipe, sources, rank=0, world_size=1, state=None, **options):
        begun.append(state["rows"] if state else 0)
        original(self, recipe, sources, rank, world_size, state, **options)

    monkeypatch.setattr(Loader, "__init__", counted)
    shown = lines(recipe, 17, 22, world_size)
    assert set(begun) == {15 * recipe.phases[0].batch_rows}
    logged = metrics(recipe.run_folder)[17:22]
    for line, expected in zip(shown, logged, strict=True):
        assert line["step"] == expected["step"]
        assert line["data_digest"] == expected["data_digest"]
        assert line["mixture"] == pytest.approx(expected["mixture"])


def test_checkpoint_of_another_recipe_is_left_alone(recipe):
    sources = open_sources(recipe)
    identity = fingerprint(sources)
    assert state_before(recipe.run_folder, 17, recipe, identity)[0]["step"] == 15
    assert state_before(recipe.run_folder, 9, recipe, identity) is None  # the oldest kept is 15
    recipe.data.skip_shorter_than = 7
    assert state_before(recipe.run_folder, 17, recipe, identity) is None
    recipe.data.skip_shorter_than = 1
    other = {**identity, "data.streams.code": "another index"}
    assert state_before(recipe.run_folder, 17, recipe, other) is None


def test_steps_before_a_fork_are_refused(recipe):
    fork = dataclasses.replace(recipe, run_name="fork")
    fork.start = StartConfig(fork=f"{recipe.run_folder}@15")
    with pytest.raises(UserError, match=r"--steps 14:17: the run begins at step 15"):
        next(inspect_steps(fork, 14, 17, world_size=1, as_json=True))
    (line,) = inspect_steps(fork, 15, 16, world_size=2, as_json=True)
    assert json.loads(line)["data_digest"] == metrics(recipe.run_folder)[15]["data_digest"]
