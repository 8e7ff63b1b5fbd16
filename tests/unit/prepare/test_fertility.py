"""Fertility counts what a tokenizer makes of a text, by domain."""

import pytest
import tokenizers
import train_tokenizer

from restomod.data.tokenizer import load_tokenizer
from restomod.errors import UserError
from restomod.prepare import fertility
from restomod.prepare.fertility import Fertility, format_table, measure

PROSE = [f"the cat number {n} sat on the mat again and again" for n in range(300)]


def byte_level(folder, texts, size=384):
    folder.mkdir()
    train_tokenizer.save_tokenizer(train_tokenizer.train_bpe(texts, size), folder, 8192)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("t") / "english", PROSE)


def saved(backend, folder):
    folder.mkdir()
    backend.add_special_tokens(["[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    backend.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def test_counts_and_ratios_are_those_of_the_texts(english):
    texts = PROSE[:40]
    measured = measure({"english": english}, {"prose": iter(texts), "none": []})
    found = measured["prose"]["english"]
    assert found.documents == 40
    assert found.text_bytes == sum(len(text) for text in texts)
    assert found.words == 40 * 11
    assert found.tokens == sum(len(ids) for ids in english.encode_batch(texts))
    assert found.tokens_per_word == found.tokens / found.words
    assert found.bytes_per_token == found.text_bytes / found.tokens
    assert (found.unknown_tokens, found.piece_tokens) == (0, 0)
    empty = measured["none"]["english"]
    assert empty == Fertility(0, 0, 0, 0, 0, 0)
    assert empty.as_dict()["tokens_per_word"] == 0.0
    assert found.as_dict()["bytes_per_token"] == found.bytes_per_token


def test_a_foreign_domain_costs_more_and_falls_back_to_pieces_of_characters(english):
    domains = {"prose": PROSE[:20], "hanzi": ["这是一只猫"] * 10, "lost": ["a \ufffd"]}
    measured = measure({"english": english}, domains)
    prose, hanzi, lost = (measured[name]["english"] for name in domains)
    assert prose.tokens_per_word < 2
    assert (hanzi.words, hanzi.text_bytes) == (50, 150)
    assert hanzi.tokens_per_word == 3.0
    assert hanzi.piece_share == 1.0
    assert lost.piece_tokens == 3


def test_a_learned_character_is_no_piece_not_even_the_replacement_character(tmp_path):
    own = byte_level(tmp_path / "own", ["猫 \ufffd " * 500, "猫", "\ufffd"])
    found = measure({"own": own}, {"d": ["猫\ufffd猫 \ufffd"]})["d"]["own"]
    assert found.piece_tokens == 0
    assert found.tokens > 0


def test_unknown_words_and_raw_bytes_are_counted(tmp_path):
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, "cat": 1, "mat": 2}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.add_special_tokens(["[UNK]"])
    vocabulary = {f"<0x{n:02X}>": n for n in range(256)} | {"<unk>": 256, "c": 257}
    bytes_ = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>")
    )
    compared = {
        "words": saved(words, tmp_path / "words"),
        "bytes": saved(bytes_, tmp_path / "bytes"),
    }
    found = measure(compared, {"d": ["cat dog mat", "ccé"]})["d"]
    assert found["words"].unknown_share == 2 / 4
    assert found["words"].piece_tokens == 0
    assert found["bytes"].tokens == 11 + 4
    assert found["bytes"].piece_tokens == 10 + 2
    assert found["bytes"].unknown_tokens == 0


def test_batches_change_nothing(english, monkeypatch):
    whole = measure({"e": english}, {"d": PROSE})
    monkeypatch.setattr(fertility, "BATCH_CHARACTERS", 100)
    assert measure({"e": english}, {"d": iter(PROSE)}) == whole


def test_the_table_is_aligned_and_compares_tokenizers(english, tmp_path):
    other = byte_level(tmp_path / "other", ["zzz zzz"], 320)
    lines = format_table(
        measure({"english": english, "other": other}, {"prose": PROSE[:20], "empty": []})
    ).splitlines()
    assert len(lines) == 5
    assert lines[0].split() == [
        "domain", "tokenizer", "words", "tokens", "tokens/word", "bytes/token", "unknown", "pieces",
    ]  # fmt: skip
    assert [line.split()[:2] for line in lines[1:3]] == [["prose", "english"], ["prose", "other"]]
    assert lines[2].split()[5] == "1.000"
    assert len({len(line) for line in lines}) == 1


def test_nothing_to_measure_with_is_refused():
    with pytest.raises(UserError, match="at least one tokenizer"):
        measure({}, {"d": ["x"]})
