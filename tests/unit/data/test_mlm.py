import numpy as np
import pytest

from restomod.config import MaskConfig
from restomod.data import mask_tokens
from restomod.data.mlm import IGNORED, Masker

V, SPECIAL, MASK = 512, (0, 1, 2, 3, 4), 4


def masked(rate=0.3, tokens=None, seed=0):
    tokens = np.random.default_rng(9).integers(5, V, 200_000) if tokens is None else tokens
    rng = np.random.default_rng(seed)
    inputs, labels = mask_tokens(
        tokens, rate=rate, rng=rng, vocab_size=V, special_ids=SPECIAL, mask_id=MASK
    )
    return tokens, inputs, labels


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.3])
def test_shares_are_80_10_10(rate):
    tokens, inputs, labels = masked(rate)
    predicted = labels != IGNORED
    n = predicted.sum()
    assert predicted.mean() == pytest.approx(rate, abs=5 * (rate / len(tokens)) ** 0.5)
    to_mask = (inputs[predicted] == MASK).mean()
    kept = (inputs[predicted] == tokens[predicted]).mean()
    assert to_mask == pytest.approx(0.8, abs=4 * (0.16 / n) ** 0.5)
    # One replacement in V - 5 is by the token that was there.
    assert kept == pytest.approx(0.1 + 0.1 / (V - 5), abs=4 * (0.09 / n) ** 0.5)


def test_labels_are_the_original_tokens_and_the_rest_is_untouched():
    tokens, inputs, labels = masked()
    predicted = labels != IGNORED
    assert (labels[predicted] == tokens[predicted]).all()
    assert (inputs[~predicted] == tokens[~predicted]).all()


def test_specials_are_neither_predicted_nor_drawn():
    tokens = np.random.default_rng(3).integers(0, V, 100_000)
    _, inputs, labels = masked(0.9, tokens)
    special = np.isin(tokens, SPECIAL)
    assert (labels[special] == IGNORED).all()
    assert (inputs[special] == tokens[special]).all()
    changed = (inputs != tokens) & (inputs != MASK)
    assert changed.sum() > 1000
    assert not np.isin(inputs[changed], SPECIAL).any()


def test_random_replacements_cover_the_vocabulary_evenly():
    masker = Masker(MaskConfig(rate=0.9, mask_share=0.0, random_share=1.0), V, SPECIAL, MASK)
    tokens = np.full(400_000, 7, np.int32)
    inputs, positions = masker(tokens, np.random.default_rng(0))
    counts = np.bincount(inputs[positions], minlength=V)[5:]
    expected = len(positions) / (V - 5)
    assert ((counts - expected) ** 2 / expected).sum() < (V - 6) + 6 * (2 * (V - 6)) ** 0.5


def test_neobert_style_masks_all():
    masker = Masker(MaskConfig(rate=0.2, mask_share=1.0, random_share=0.0), V, SPECIAL, MASK)
    inputs, positions = masker(np.full(10_000, 7, np.int32), np.random.default_rng(0))
    assert (inputs[positions] == MASK).all()


def test_same_generator_gives_the_same_masks():
    first, second, other = masked(seed=1), masked(seed=1), masked(seed=2)
    assert (first[1] == second[1]).all()
    assert (first[1] != other[1]).any()
