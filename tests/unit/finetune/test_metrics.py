import numpy as np
import pytest
import torch

from restomod.finetune.examples import Example, Examples
from restomod.finetune.metrics import (
    entities,
    entity_f1,
    majority_scores,
    number_scores,
    text_scores,
    word_scores,
)


def test_entities_are_counted_as_conll_does():
    tags = ["B-PER", "I-PER", "O", "I-LOC", "I-LOC", "B-LOC", "I-PER", "O", "B-PER"]
    assert entities(tags) == {
        (0, 1, "PER"), (3, 4, "LOC"), (5, 5, "LOC"), (6, 6, "PER"), (8, 8, "PER"),
    }  # fmt: skip
    right = [["B-X", "I-X", "O"], ["B-Y", "O"]]
    assert entity_f1(right, right) == 1
    assert entity_f1(right, [["B-X", "O", "O"], ["B-Y", "O"]]) == pytest.approx(0.5)
    assert entity_f1([["O"]], [["O"]]) == 0


def test_words_without_a_token_are_counted_with_the_most_frequent_tag():
    names = ["B-X", "O"]
    example = Example(np.arange(4), np.array([0, 1, 0, 1]), np.array([1, -1, -1, 2]))
    data = Examples([], [example], names, fallback=1)
    logits = [torch.tensor([[2.0, 1.0], [1.0, 2.0]])]  # both right
    scores = word_scores(data, logits)
    assert scores["accuracy"] == 0.75  # the third word is taken for O
    assert scores["entity_f1"] == pytest.approx(2 * 1 / 3)


def test_the_majority_is_trainings_most_frequent_class():
    """Whatever the validation set has most of."""
    train = [Example(np.arange(2), np.array([n])) for n in (2, 0, 2, 1)]
    validation = [Example(np.arange(2), np.array([n])) for n in (0, 0, 2)]
    scores = majority_scores(Examples(train, validation, ["a", "b", "c"]))
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["matthews"] == 0
    train = [Example(np.arange(4), np.array([1, 1, 0]), np.array([0, 1, 2]))]
    validation = [
        Example(np.arange(4), np.array([0, 1, 1]), np.array([0, 1, -1])),
        Example(np.arange(4), np.array([0]), np.array([-1])),
    ]
    scores = majority_scores(Examples(train, validation, ["B-X", "O"]))
    assert scores["accuracy"] == 0.5
    assert scores["entity_f1"] == 0


def test_scores_of_texts_and_numbers():
    examples = [Example(np.arange(2), np.array([n])) for n in (0, 1, 1, 0)]
    logits = [torch.tensor([[1.0 - n, float(n)]]) for n in (0, 1, 0, 0)]
    scores = text_scores(examples, logits)
    assert scores["accuracy"] == 0.75
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["matthews"] == pytest.approx(1 / np.sqrt(3))
    numbers = [Example(np.arange(2), np.array([x], np.float32)) for x in (1, 2, 3)]
    found = number_scores(numbers, [torch.tensor([[x]]) for x in (1.0, 4.0, 9.0)])
    assert found["spearman"] == pytest.approx(1)
    assert 0.9 < found["pearson"] < 1
    assert number_scores(numbers, [torch.tensor([[1.0]])] * 3) == {"spearman": 0, "pearson": 0}
