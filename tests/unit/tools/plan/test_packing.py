"""Packing and FLOPs that the plan expects against rows of the real loader."""

import itertools

import pytest

from restomod.data.loader import Loader
from restomod.data.sources import open_sources
from restomod.model.flops import flops_per_token
from restomod.recipe import load_recipe
from restomod.tools.plan.packing import expected_packing
from restomod.tools.plan.parts import Target
from restomod.tools.plan.plan import make_plan, plan

SHORT = "phases.0.mixture={prose: 0.6, science: 0.4}"
"""Without the one document of code that is as long as all others."""


@pytest.mark.parametrize(
    "changes",
    [
        ["phases.0.row_tokens=512"],
        ["phases.0.row_tokens=4096", "phases.0.sequence_length=256"],
        [SHORT, "phases.0.row_tokens=256", "data.special_tokens=document_ends"],
        [SHORT, "phases.0.row_tokens=1024", "data.tokens_per_document_min=64"],
        [SHORT, "phases.0.row_tokens=256", "data.buffer_rows=1", "data.skip_shorter_than=20"],
    ],
    ids=str,
)
def test_rows_are_as_full_and_cost_as_much_as_the_plan_says(tiny, tmp_path, changes):
    words = ["data.workers=0", "phases.0.schedule={}", "phases.0.slots=1M", *changes]
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")], words)
    sources, phase = open_sources(recipe), recipe.phases[0]
    packing = expected_packing(recipe, phase, sources.streams)
    loader = Loader(recipe, sources)
    facts = []
    for _ in itertools.islice(loader, 200_000 // phase.batch_slots + 1):
        facts.append(loader.facts)
    real, slots = sum(f.real_tokens for f in facts), sum(f.slots for f in facts)
    assert packing.efficiency == pytest.approx(real / slots, abs=0.02)
    lengths = [length for fact in facts for length in fact.lengths]
    assert packing.mean_chunk == pytest.approx(sum(lengths) / len(lengths), rel=0.15)
    masked = sum(fact.masked_tokens for fact in facts) / real
    counted = flops_per_token(recipe.model, 512, lengths, masked)
    cost = make_plan(recipe, Target(1, 1)).costs[0]
    assert cost.linear + cost.attention == pytest.approx(counted, rel=0.03)
    assert cost.tokens == phase.total_slots * packing.efficiency


def test_emptier_rows_are_said_and_warned_of(tiny, tmp_path):
    path = tiny.write(tmp_path / "recipe.yaml")
    text = plan(load_recipe([path], ["phases.0.row_tokens=80", "data.buffer_rows=1"]), 1)
    assert "rows stay emptier than 99%" in text
    text = plan(load_recipe([path], ["phases.0.row_tokens=8192", "data.buffer_rows=16"]), 1)
    assert "rows are expected to be 100.00% full" in text
    assert "emptier" not in text


def test_without_data_chunks_count_as_full(tiny, tmp_path):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")])
    recipe.data.streams["prose"].path = str(tmp_path / "nowhere")
    text = plan(recipe, 1)
    assert "chunks taken as full" in text
    assert "packing: rows are expected" not in text


def test_a_stream_of_nothing_but_short_documents_does_not_hang(tiny, tmp_path):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")])
    streams = open_sources(recipe).streams
    recipe.data.skip_shorter_than = 1_000_000
    assert expected_packing(recipe, recipe.phases[0], streams) is None
