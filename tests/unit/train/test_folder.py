"""A run keeps its tokenizer, and the name under which W&B knows it while it is the same run."""

import json
from types import SimpleNamespace

import pytest

from restomod.data.tokenizer import load_tokenizer
from restomod.recipe import load_recipe, save_recipe
from restomod.train.folder import _keep_tokenizer, _run_id

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


def test_the_tokenizer_that_a_run_has_kept_serves_it_again(tiny, tmp_path):
    kept = tmp_path / "tokenizer"
    given = tiny.folder / "tokenizer" / "tokenizer.json"
    fingerprint = load_tokenizer(given).fingerprint
    for source in (given, kept / "tokenizer.json", kept):
        _keep_tokenizer(source, load_tokenizer(source), kept)
        assert load_tokenizer(kept).fingerprint == fingerprint
    assert sorted(file.name for file in kept.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
