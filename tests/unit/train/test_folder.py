"""A run keeps the name under which W&B knows it, as long as it is the same run."""

import json
from types import SimpleNamespace

import pytest

from restomod.recipe import load_recipe, save_recipe
from restomod.train.folder import _run_id

NEW, RESUMED = (SimpleNamespace(resumes=resumes) for resumes in (False, True))


@pytest.fixture
def run(tiny, tmp_path):
    """A recipe whose run was killed before its first checkpoint."""
    path = tiny.write(tmp_path / "recipe.yaml", runs_dir=str(tmp_path))
    recipe = load_recipe([path])
    recipe.run_folder.mkdir()
    save_recipe(recipe, recipe.run_folder / "config.yaml")
    line = {"event": "start", "step": 0, "run_id": "tiny-1"}
    (recipe.run_folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return path, recipe


def test_it_is_the_same_after_a_resume_or_a_new_beginning_of_the_same_recipe(run):
    path, recipe = run
    assert _run_id(recipe, RESUMED) == "tiny-1"
    assert _run_id(recipe, NEW) == "tiny-1"
    free = load_recipe([path], ["logging.every_steps=7", "data.workers=0"])
    assert _run_id(free, NEW) == "tiny-1"


def test_it_is_another_for_another_recipe_or_without_a_log(run):
    path, recipe = run
    other = load_recipe([path], ["optimizer.lr=0.5"])
    assert _run_id(other, NEW) != "tiny-1"
    assert _run_id(other, RESUMED) == "tiny-1"  # as resume.allow permits
    (recipe.run_folder / "metrics.jsonl").write_text("")
    names = {_run_id(recipe, start) for start in (NEW, RESUMED, NEW)}
    assert len(names) == 3
    assert all(name.startswith("tiny-") for name in names)
