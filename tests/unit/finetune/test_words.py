import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from restomod.finetune.words import first_tokens, join_words, tags_of_spans

letters = st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"])
known = st.sampled_from(["🎉🎉", "e\u0301", "the"])
word = st.one_of(st.text(letters, min_size=1, max_size=8), known)
odd = st.sampled_from(["of", "the", "\u0301", " ", ""])
words = st.lists(word, min_size=1, max_size=8)


def byte_level(prefix_space: bool = False, trim: bool = False) -> Tokenizer:
    from tokenizers.processors import ByteLevel

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    if trim:
        tokenizer.post_processor = ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the end of the day, the ends"] * 5, trainer)
    return tokenizer


def lowercase_words() -> Tokenizer:
    """Every word a token, lower-cased, without accents and without what is not ASCII then."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def across_words() -> Tokenizer:
    """Tokens that hold several words."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False)
    tokenizer.train_from_iterator(["of the end", "of the day"] * 20, trainer)
    return tokenizer


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_level(True), byte_level(trim=True)])
@settings(max_examples=60, deadline=None)
@given(words=words)
def test_tokens_from_a_words_first_to_the_next_words_first_spell_the_word(tokenizer, words):
    text, spans = join_words(words)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    firsts = first_tokens(spans, encoding.offsets)
    ends = [*firsts[1:], len(encoding.ids)]
    for spelled, begin, end in zip(words, firsts, ends, strict=True):
        raw = b"".join(_bytes(tokenizer.id_to_token(i)) for i in encoding.ids[begin:end])
        assert raw.strip(b" ") == spelled.encode()


def _bytes(token: str) -> bytes:
    return bytes(BYTES[character] for character in token)


# ByteLevel's alphabet: printable bytes stand for themselves, the others are counted from 256 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(b): b for b in PRINTABLE}
BYTES |= {chr(256 + n): b for n, b in enumerate(sorted(set(range(256)) - set(PRINTABLE)))}


@pytest.mark.parametrize("tokenizer", [byte_level(), lowercase_words(), across_words()])
@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.one_of(word, odd), max_size=8))
def test_a_word_has_the_first_token_that_touches_it_and_no_other_word_has_that(tokenizer, words):
    text, spans = join_words(words)
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    firsts = first_tokens(spans, offsets)
    taken: set[int] = set()
    for (begin, end), first in zip(spans, firsts, strict=True):
        touching = [
            n for n, (a, b) in enumerate(offsets) if a < min(end, b) and b > begin and begin < end
        ]
        free = [n for n in touching if n not in taken]
        assert first == (free[0] if free else -1)
        taken.add(first)


def test_words_that_vanish_or_are_cut_off_have_no_token():
    text, spans = join_words(["a", "\u0301", "b", "c"])
    offsets = lowercase_words().encode(text, add_special_tokens=False).offsets
    assert first_tokens(spans, offsets) == [0, -1, 1, 2]
    assert first_tokens(spans, offsets[:2]) == [0, -1, 1, -1]


def test_the_second_of_two_words_in_one_token_has_none():
    text, spans = join_words(["of", "the"])
    assert text == "of the"
    assert first_tokens(spans, [(0, 6)]) == [0, -1]
    assert first_tokens(spans, [(0, 4), (4, 6)]) == [0, 1]


def test_tokens_without_characters_serve_no_word():
    assert first_tokens([(0, 2), (3, 5)], [(0, 0), (0, 2), (3, 3), (2, 2), (2, 5)]) == [1, 4]


def test_spans_become_tags_of_the_words_they_touch():
    text = "Ada L. wrote (in London)."
    spans = [{"start": 0, "end": 6, "label": "PER"}, {"start": 17, "end": 20, "label": "LOC"}]
    words, tags = tags_of_spans(text, spans)
    parts = ["Ada", "L", ".", "wrote", "(", "in", "London", ")", "."]
    assert [text[a:b] for a, b in words] == parts
    assert tags == ["B-PER", "I-PER", "I-PER", "O", "O", "O", "B-LOC", "O", "O"]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(3, 4)], "holds none of its words"),
        ([(0, 99)], "holds none of its words"),
        ([(0, 3), (2, 5)], "shares a word"),
    ],
)
def test_spans_that_cannot_be_tagged_are_refused(spans, message):
    with pytest.raises(ValueError, match=message):
        tags_of_spans("one two", [{"start": a, "end": b, "label": "X"} for a, b in spans])


def test_random_offsets_give_rising_tokens():
    generator = np.random.default_rng(0)
    for _ in range(200):
        cuts = np.sort(generator.integers(0, 30, 12))
        offsets = list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
        _, spans = join_words(["x" * n for n in generator.integers(0, 5, 8)])
        found = [n for n in first_tokens(spans, offsets) if n >= 0]
        assert found == sorted(set(found))
