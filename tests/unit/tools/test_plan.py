import json
from pathlib import Path

import pytest

from restomod.data.sources import open_sources
from restomod.model.memory import parameters
from restomod.recipe import load_recipe
from restomod.tools.plan import plan

SHIPPED = sorted((Path(__file__).parents[3] / "yamls" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_is_planned_even_without_its_data(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = plan(load_recipe([path]), 1)
    assert "not here" in text
    assert "steps of" in text


def test_plan_counts_steps_tokens_and_epochs(tiny, tmp_path):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")])
    text = plan(recipe, 2)
    assert "24 steps of 2,048 slots (4 rows of 512), 49,152 in all" in text
    assert "each of 2 ranks: 2 micro-batches of 1 rows; 4 lanes, 2 of them each" in text
    tokens = open_sources(recipe).streams["prose"].attributes.tokens
    epochs = f"{0.3 * 49_152 / tokens:.2f} epochs of at most 1000"
    assert f"{tokens:,} tokens (from its manifest), {epochs}" in text
    assert "warning: more than 4 epochs of prose" in text
    sources = open_sources(recipe)
    lanes = 2
    shards = sum(min(lanes * 2 * 4, len(s.shard_documents)) for s in sources.streams.values())
    assert f"each rank opens up to {shards} shards before its first rows" in text
    assert "1000 GB are allowed" in text
    assert "fewer than 27 mean chunks" in text
    for line in ("memory of a rank (GPU, bf16): 0.0", "memory of a rank (CPU, float32): 0.0"):
        assert line in text


def test_plan_divides_memory_by_the_ranks_that_share_it(tiny, tmp_path):
    path = tiny.write(tmp_path / "recipe.yaml")
    recipe = load_recipe([path], ["parallel.strategy=hsdp"])
    assert "a rank holds 1/2" in plan(recipe, 4, 2)
    assert "a rank holds 1/4" in plan(recipe, 4)
    assert "a rank holds" not in plan(recipe, 1)
    assert "a rank holds" not in plan(load_recipe([path]), 4)


def test_plan_warns_where_rows_are_closed_before_they_are_full(tiny, tmp_path):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")], ["phases.0.sequence_length=3"])
    recipe.data.tokens_per_document_min = 12
    assert "one document for every 12 slots, 25% full" in plan(recipe, 1)
    recipe.data.tokens_per_document_min = 3
    assert "is closed at" not in plan(recipe, 1)


def test_parameters_are_those_of_the_model(tiny, tmp_path):
    from restomod.train.initial import build_model

    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")])
    sources = open_sources(recipe)
    model = build_model(recipe, recipe.phases[0], sources)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameters(recipe.model, sources.tokenizer.vocab_size)) == counted


def test_modernbert_base_and_large_have_the_published_size():
    from restomod.config import ModelConfig

    assert sum(parameters(ModelConfig(), 50_368)) == 149_655_232
    large = ModelConfig(layers=28, hidden_size=1024, heads=16, intermediate_size=2624)
    assert sum(parameters(large, 50_368)) == 395_881_664


@pytest.mark.parametrize(
    ("grace", "message"),
    [
        ("60s", "stopping: 60 s are left after a signal; a step and a save took up to 7.5 s"),
        ("12s", "warning: a step and a save took up to 7.5 s in this run, and 12 s are left"),
    ],
)
def test_grace_is_compared_with_what_saving_took(tiny, tmp_path, grace, message):
    recipe = load_recipe(
        [tiny.write(tmp_path / "r.yaml")], [f"faults.grace={grace}", f"runs_dir={tmp_path}"]
    )
    assert "no save was measured yet" in plan(recipe, 1, 1)
    recipe.run_folder.mkdir()
    events = [
        {"event": "checkpoint", "step": 5, "seconds": 6.5},
        {"event": "checkpoint", "step": 10, "seconds": 3.0},
        {"event": "train", "step": 11, "step_s": 1.0},
    ]
    text = "".join(json.dumps(event) + "\n" for event in events)
    (recipe.run_folder / "metrics.jsonl").write_text(text + '{"event": "checkpoint", "st')
    assert message in plan(recipe, 1, 1)
