import dataclasses

import numpy as np
import pytest
import torch

from restomod.data.mlm import IGNORED
from restomod.data.sources import open_sources
from restomod.eval.heldout import evaluation, summary, unigram_baseline
from restomod.recipe import load_recipe
from restomod.train.evaluation import heldout_batches
from restomod.train.initial import build_model, unigram


def test_unigram_baseline_is_the_cross_entropy_of_frequencies():
    shares = np.array([0.5, 0.25, 0.25])
    batches = [
        {"labels": torch.tensor([0, 1, IGNORED])},
        {"labels": torch.tensor([2, 0, IGNORED, IGNORED])},
    ]
    baseline = unigram_baseline(batches, shares)
    assert baseline["unigram_loss"] == pytest.approx(1.5 * np.log(2))
    assert baseline["unigram_accuracy"] == 0.5


@pytest.fixture
def built(tiny, tmp_path):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml", init__log_unigram_bias=True)])
    sources = open_sources(recipe)
    return recipe, sources, build_model(recipe, recipe.phases[0], sources)


def test_unigram_weighs_streams_by_the_mixture_and_leaves_no_zero(built):
    recipe, sources, _ = built
    shares = unigram(recipe.phases, sources, sources.tokenizer.vocab_size)
    assert shares.sum() == pytest.approx(1)
    assert shares.min() > 0
    code = sources.streams["code"].token_counts(512)
    only_code = (code > 0) & (sources.streams["prose"].token_counts(512) == 0)
    only_code &= sources.streams["science"].token_counts(512) == 0
    assert shares[only_code].sum() == pytest.approx(
        0.5 * code[only_code].sum() / code.sum(), rel=0.02
    )


def test_the_unigram_has_seen_all_phases_by_their_slots(tiny, tmp_path):
    path = tiny.write(tmp_path / "recipe.yaml")
    recipe = load_recipe([path])
    sources = open_sources(recipe)
    first, last = (dataclasses.replace(recipe.phases[0], name=name) for name in ("a", "b"))
    first.mixture, first.slots = {"code": 1.0}, "30K"
    last.mixture, last.slots = {"prose": 1.0}, "10K"
    recipe.phases = [first, last]
    vocabulary = sources.tokenizer.vocab_size
    code, prose = (sources.streams[name].token_counts(vocabulary) for name in ("code", "prose"))
    expected = 0.75 * code / code.sum() + 0.25 * prose / prose.sum()
    assert unigram(recipe.phases, sources, vocabulary) == pytest.approx(expected, abs=5e-3)
    model = build_model(recipe, first, sources)
    losses = evaluation(model, recipe, sources)["domains"]["all"]
    of_the_last = unigram([last], sources, vocabulary)
    kept = [batch["labels"] for batch in heldout_batches(recipe, last, sources)["prose"]]
    alone = unigram_baseline([{"labels": labels} for labels in kept], of_the_last)
    assert losses["unigram_loss"] > alone["unigram_loss"] + 0.05


def test_model_with_unigram_bias_scores_as_the_unigram(built):
    recipe, sources, model = built
    results = evaluation(model, recipe, sources)["domains"]
    assert set(results) == {"prose", "all"}
    assert results["all"]["loss"] == pytest.approx(results["all"]["unigram_loss"], abs=0.05)
    assert not model.training or model.train()


def test_the_summary_keeps_its_columns_and_shows_tokens_that_are_only_space():
    numbers = {"loss": 1.0, "unigram_loss": 2.0, "accuracy": 0.5, "unigram_accuracy": 0.1}
    numbers["masked_tokens"] = 7.0
    guesses = [{"token": "\n", "probability": 0.5}, {"token": " word", "probability": 0.2}]
    example = {"domain": "a", "text": "[MASK]", "expected": " word", "predictions": guesses}
    results = {
        "domains": {"a-domain-of-a-long-name": numbers, "all": numbers},
        "views": {},
        "probes": {},
        "fill_mask": [example],
    }
    head, *rows = summary(results).splitlines()[:3]
    assert {len(row) for row in rows} == {len(head)}
    assert "was 'word'; guesses '\\n' 50%, 'word' 20%" in summary(results)
