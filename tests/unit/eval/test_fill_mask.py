"""Fill-mask samples: the same passages every time, one word of each hidden."""

import pytest
import torch

from restomod.data.sources import open_sources
from restomod.eval.fill_mask import CONTEXT, guess, hidden_words
from restomod.recipe import load_recipe
from restomod.train.initial import build_model


@pytest.fixture
def built(tiny, tmp_path):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")])
    sources = open_sources(recipe)
    return sources, build_model(recipe, recipe.phases[0], sources).eval()


def passages(sources, count):
    return hidden_words(sources.heldout.values(), sources.tokenizer, 17, count)


def test_a_word_is_hidden_and_guesses_are_ranked(built):
    sources, model = built
    found = passages(sources, 3)
    examples = guess(model, found, sources.tokenizer)
    assert len(examples) == 3
    for passage, example in zip(found, examples, strict=True):
        assert len(passage.ids) == CONTEXT + 2
        assert (passage.ids == sources.tokenizer.mask_id).nonzero()[0].tolist() == [passage.place]
        assert example["text"].count("[MASK]") == 1
        assert example["expected"].strip().isalpha()
        chances = [guess["probability"] for guess in example["predictions"]]
        assert chances == sorted(chances, reverse=True)
        assert len(chances) == 5
        assert 0 < sum(chances) <= 1


def test_passages_are_the_same_whoever_asks_and_however_many(built):
    sources, _ = built
    texts = [passage.text for passage in passages(sources, 4)]
    assert [passage.text for passage in passages(sources, 2)] == texts[:2]
    assert len(set(texts)) == 4
    assert passages(sources, 0) == []


def test_guesses_are_those_of_each_passage_alone(built):
    sources, model = built
    found = passages(sources, 3)
    for passage, example in zip(found, guess(model, found, sources.tokenizer), strict=True):
        ids = torch.from_numpy(passage.ids)
        with torch.no_grad():
            logits = model.logits(ids, torch.tensor([0, len(ids)]))[passage.place]
        best = logits.softmax(0).topk(5)
        assert [g["token"] for g in example["predictions"]] == [
            sources.tokenizer.decode([token]) for token in best.indices.tolist()
        ]
        assert [g["probability"] for g in example["predictions"]] == pytest.approx(
            best.values.tolist(), rel=1e-4
        )
