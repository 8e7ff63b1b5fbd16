import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restomod.config import MaskConfig, MaskStep, PhaseConfig
from restomod.data import mask_tokens
from restomod.data.mlm import IGNORED, WORD_TOKENS, Masker, mask_rate, predicted_slots
from restomod.data.tokenizer import WordParts, load_tokenizer

V, SPECIAL, MASK = 512, (0, 1, 2, 3, 4), 4


class Vocabulary:
    """What a masker needs of a tokenizer: ids from 300 on carry on the word before them."""

    vocab_size, reserved_ids, mask_id = V, SPECIAL, MASK

    def word_parts(self):
        same = np.zeros(V, np.uint8)
        return WordParts(np.arange(V) < 300, same, same)


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


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64"])
def test_any_token_of_the_vocabulary_can_be_drawn_in_the_place_of_narrow_ones(dtype):
    size = 60_000
    tokens = np.full(20_000, 100, dtype)
    inputs, labels = mask_tokens(tokens, 1.0, np.random.default_rng(0), size, SPECIAL, MASK)
    assert (labels == 100).all()
    drawn = inputs[(inputs != MASK) & (inputs != 100)]
    assert 5 <= drawn.min() < 300
    assert size - 300 < drawn.max() < size
    assert inputs.dtype == {"uint8": np.uint16, "int16": np.int32}.get(dtype, dtype)


@pytest.mark.parametrize(
    ("dtype", "size", "expected"),
    [
        ("uint8", 256, "uint8"),
        ("uint8", 257, "uint16"),
        ("int8", 128, "int8"),
        ("int8", 129, "int16"),
        ("int8", 255, "int16"),
    ],
)
def test_a_type_that_holds_the_vocabulary_stays(dtype, size, expected):
    tokens = np.array([0, 127], dtype)
    inputs, _ = mask_tokens(tokens, 0.0, np.random.default_rng(0), size, (), MASK)
    assert inputs.dtype == expected


def test_of_no_tokens_none_are_masked():
    inputs, labels = mask_tokens([], 0.3, np.random.default_rng(0), V, (), MASK)
    assert inputs.tolist() == labels.tolist() == []


def test_what_is_no_token_of_the_vocabulary_is_refused_at_any_rate():
    rng = np.random.default_rng(0)
    for tokens in ([7, -1], [7, V], [[7]], [7.0]):
        with pytest.raises(ValueError, match=r"token -?\d+ does not exist|ids are wanted"):
            mask_tokens(np.array(tokens), 0.0, rng, V, SPECIAL, MASK)
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="must lie in"):
            mask_tokens(np.array([7]), rate, rng, V, SPECIAL, MASK)
    assert len(mask_tokens(np.zeros(0, np.int32), 1.0, rng, V, SPECIAL, MASK)[0]) == 0


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
    masker = Masker(MaskConfig(mask_share=0.0, random_share=1.0), Vocabulary())
    tokens = np.full(400_000, 7, np.int32)
    inputs, positions = masker(tokens, np.random.default_rng(0), 0.9)
    counts = np.bincount(inputs[positions], minlength=V)[5:]
    expected = len(positions) / (V - 5)
    assert ((counts - expected) ** 2 / expected).sum() < (V - 6) + 6 * (2 * (V - 6)) ** 0.5


def test_neobert_style_masks_all():
    masker = Masker(MaskConfig(mask_share=1.0, random_share=0.0), Vocabulary())
    inputs, positions = masker(np.full(10_000, 7, np.int32), np.random.default_rng(0), 0.2)
    assert (inputs[positions] == MASK).all()


class Draws:
    """A generator of given numbers."""

    def __init__(self, *draws):
        self._draws = [np.array(drawn, np.float32) for drawn in draws]

    def random(self, size, dtype):
        drawn = self._draws.pop(0)
        assert (drawn.shape, drawn.dtype) == ((size,), dtype)
        return drawn

    def integers(self, high, size):
        assert high == V - len(SPECIAL)
        return np.full(size, 20)


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_draw_that_equals_a_bound_is_beyond_it(whole_word):
    """Shares are half open, so that 0 is never drawn and 1 always."""
    config = MaskConfig(mask_share=0.25, random_share=0.5, whole_word=whole_word)
    draws = [[0.0, 0.125, 0.375, 0.5]]
    if whole_word:  # one draw for each word's fate, one for each predicted token's
        draws.append([0.0, 0.25, 0.75])
    tokens = np.array([11, 12, 13, 14])
    inputs, positions = Masker(config, Vocabulary())(tokens, Draws(*draws), 0.5)
    assert positions.tolist() == [0, 1, 2]
    assert inputs.tolist() == [MASK, 20 + len(SPECIAL), 13, 14]
    config.random_share = 0.0
    inputs, positions = Masker(config, Vocabulary())(tokens, Draws(*draws), 0.5)
    assert positions.tolist() == [0, 1, 2]
    assert inputs.tolist() == [MASK, 12, 13, 14]
    draws = [[0.0] * 4, []][: 1 + whole_word]
    assert len(Masker(config, Vocabulary())(tokens, Draws(*draws), 0.0)[1]) == 0


def test_same_generator_gives_the_same_masks():
    first, second, other = masked(seed=1), masked(seed=1), masked(seed=2)
    assert (first[1] == second[1]).all()
    assert (first[1] != other[1]).any()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, V - 1), min_size=1, max_size=300),
    st.floats(0.01, 0.99),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_any_tokens_are_masked_by_the_rules(ids, rate, mask_share, whole_word, seed):
    config = MaskConfig(mask_share=mask_share, random_share=1 - mask_share, whole_word=whole_word)
    tokens = np.array(ids, np.int32)
    before = tokens.copy()
    masker = Masker(config, Vocabulary())
    inputs, positions = masker(tokens, np.random.default_rng(seed), rate)
    again, same = masker(tokens, np.random.default_rng(seed), rate)
    assert (tokens == before).all()
    assert (inputs == again).all()
    assert (positions == same).all()
    assert inputs.dtype == tokens.dtype
    assert (np.diff(positions) > 0).all()
    assert not np.isin(tokens[positions], SPECIAL).any()
    others = np.setdiff1d(np.arange(len(tokens)), positions)
    assert (inputs[others] == tokens[others]).all()
    replaced = inputs[positions][inputs[positions] != MASK]
    assert not np.isin(replaced, SPECIAL).any()
    if mask_share == 1:
        assert not len(replaced)


def words(count, seed=0):
    """Return tokens of words of 1 to 5 tokens, [CLS] before every tenth, and each token's word."""
    generator = np.random.default_rng(seed)
    tokens, number = [], []
    for n in range(count):
        if n % 10 == 0:
            tokens.append(1)
            number.append(-1)
        length = int(generator.integers(1, 6))
        tokens += [int(generator.integers(5, 300)), *generator.integers(300, V, length - 1)]
        number += [n] * length
    return np.array(tokens, np.int32), np.array(number)


def test_whole_words_are_predicted_or_not_at_all():
    tokens, number = words(40_000)
    masker = Masker(MaskConfig(whole_word=True), Vocabulary())
    inputs, positions = masker(tokens, np.random.default_rng(0), 0.3)
    predicted = np.zeros(len(tokens), bool)
    predicted[positions] = True
    assert not predicted[number < 0].any()
    of_word = np.bincount(number[number >= 0], weights=predicted[number >= 0])
    lengths = np.bincount(number[number >= 0])
    assert set(np.unique(of_word / lengths)) == {0.0, 1.0}
    share, words_seen = (of_word > 0).mean(), len(lengths)
    assert share == pytest.approx(0.3, abs=4 * (0.21 / words_seen) ** 0.5)
    assert (inputs[positions] == MASK).mean() == pytest.approx(0.8, abs=0.01)
    untouched = ~predicted
    assert (inputs[untouched] == tokens[untouched]).all()


def test_a_word_ends_where_letters_of_another_kind_follow():
    class Kinds(Vocabulary):
        """No id begins a word; those from 300 on begin with one kind and end with another."""

        def word_parts(self):
            late = np.arange(V) >= 300
            return WordParts(np.zeros(V, bool), np.zeros(V, np.uint8), late.astype(np.uint8))

    masker = Masker(MaskConfig(whole_word=True), Kinds())
    tokens = np.tile(np.array([7, 8, 300, 301, 9], np.int32), 5000)
    _, positions = masker(tokens, np.random.default_rng(0), 0.3)
    predicted = np.zeros(len(tokens), bool)
    predicted[positions] = True
    # 9 goes on into the 7, 8 and 300 of the next five tokens; 301 stands alone.
    words = predicted[4:-1].reshape(-1, 5)
    assert (words[:, :4] == words[:, :1]).all()
    assert 0.2 < (words[:, 4] != words[:, 0]).mean() < 0.6


def test_word_without_end_is_masked_in_pieces():
    masker = Masker(MaskConfig(whole_word=True), Vocabulary())
    tokens = np.full(80_000, 400, np.int32)
    _, positions = masker(tokens, np.random.default_rng(0), 0.3)
    assert len(positions) / len(tokens) == pytest.approx(0.3, abs=0.02)
    runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
    assert {len(run) % WORD_TOKENS for run in runs} == {0}


def test_room_is_what_is_expected_at_the_highest_rate_and_six_deviations():
    def room(slots, **mask):
        return predicted_slots(slots, PhaseConfig(mask=MaskConfig(**mask)))

    # The deviation of 10,000 draws at a tenth is 30, of pieces of 8 tokens sqrt(8) as much.
    assert room(10_000, rate=0.1) == 1000 + 6 * 30
    assert room(10_000, rate=0.1, whole_word=True) == 1000 + math.ceil(6 * 30 * 8**0.5)
    later = [MaskStep("1K", 0.1), MaskStep("2K", 0.05)]
    assert room(10_000, rate=0.02, later=later) == room(10_000, rate=0.1)
    assert room(10_000, rate=0.1, later=later[1:]) == room(10_000, rate=0.1)
    assert room(16, rate=0.9) == 16
    assert predicted_slots(10_000, PhaseConfig(objective="clm")) == 10_000


def test_room_holds_whole_words():
    phase = PhaseConfig()
    tokens_only = predicted_slots(16_384, phase)
    phase.mask.whole_word = True
    assert predicted_slots(16_384, phase) > tokens_only
    masker = Masker(phase.mask, Vocabulary())
    tokens = np.full(16_384, 400, np.int32)
    most = max(len(masker(tokens, np.random.default_rng(n), 0.3)[1]) for n in range(200))
    assert most < predicted_slots(16_384, phase)


def test_tokenizers_word_starts_make_words(tiny):
    tokenizer = load_tokenizer(tiny.folder / "tokenizer")
    (ids,) = tokenizer.encode_batch(["coaa (cobb) prxx12\ncozz"])
    parts = tokenizer.word_parts()
    starts = parts.starts[ids].copy()
    starts[1:] |= parts.first[ids[1:]] != parts.last[ids[:-1]]
    starts[0] = True
    begins = [*np.flatnonzero(starts), len(ids)]
    found = [tokenizer.decode(ids[a:b]) for a, b in itertools.pairwise(begins)]
    assert "".join(found) == "coaa (cobb) prxx12\ncozz"
    assert [piece.strip() for piece in found if piece.strip()] == [
        "coaa", "(", "cobb", ")", "prxx", "12", "cozz",
    ]  # fmt: skip


def test_rate_follows_its_steps_and_lines():
    later = [MaskStep("1K", 0.15), MaskStep("3K", 0.05)]
    steps = MaskConfig(rate=0.3, later=later)
    assert [mask_rate(steps, n) for n in (0, 999, 1000, 2999, 3000, 10**9)] == [
        0.3, 0.3, 0.15, 0.15, 0.05, 0.05,
    ]  # fmt: skip
    lines = MaskConfig(rate=0.3, later=later, between="linear")
    assert mask_rate(lines, 500) == pytest.approx(0.225)
    assert mask_rate(lines, 2000) == pytest.approx(0.10)
    assert mask_rate(lines, 5000) == pytest.approx(0.05)
    assert predicted_slots(10_000, PhaseConfig(mask=MaskConfig(rate=0.1, later=later))) > 1500
