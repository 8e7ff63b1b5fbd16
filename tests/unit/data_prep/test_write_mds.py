"""What goes in as documents comes out of the shards as the same ids, whole and in order."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import train_tokenizer
import write_mds

from restomod.data.tokenizer import load_tokenizer, token_dtype
from restomod.errors import UserError
from restomod.prepare.config import parse_size
from restomod.prepare.readers import Tally
from restomod.prepare.shards import write_shards

TEXTS = [
    "x",  # one token
    "nul \0 character",
    "",
    "def f(x):\n    return x\n",
    "[CLS] is a special token, [MASK] too",
    "lone \ud800 surrogate",
    " ".join(f"word{n % 97}" for n in range(20_000)),  # more than 50,000 tokens
    "naïve 東京 😀",
    *[f"document number {n}" for n in range(200)],
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus, its tokenizer and two data sets written in one call."""
    folder = tmp_path_factory.mktemp("mds")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "{broken\n")
    (folder / "other.txt").write_text("one file, one document")
    train_tokenizer.save_tokenizer(
        train_tokenizer.train_bpe(TEXTS[:4], 320), make(folder / "tok"), 1024
    )
    command = ["--tokenizer", str(folder / "tok"), "--size-limit", "1kb"]
    command += ["--dataset", f"{folder}/mds/a={corpus},{folder}/other.txt"]
    command += ["--dataset", f"{folder}/mds/b={folder}/other.txt"]
    assert write_mds.main(command) == 0
    return folder


def make(folder):
    folder.mkdir()
    return folder


def stored(folder):
    """Read a data set back with Streaming's own reader."""
    from streaming.base.compression import decompress
    from streaming.base.format import reader_from_json

    found = []
    for entry in json.loads((folder / "index.json").read_text())["shards"]:
        zipped = folder / entry["zip_data"]["basename"]
        raw = folder / entry["raw_data"]["basename"]
        raw.write_bytes(decompress(entry["compression"], zipped.read_bytes()))
        reader = reader_from_json(str(folder.parent), folder.name, entry)
        found += [reader[n]["tokens"] for n in range(entry["samples"])]
        raw.unlink()
    return found


def test_documents_come_back_as_the_ids_of_the_tokenizer(made):
    tokenizer = load_tokenizer(made / "tok")
    kept = [text.replace("\ud800", "\ufffd") for text in TEXTS if text]
    expected = tokenizer.encode_batch([*kept, "one file, one document"])
    found = stored(made / "mds" / "a")
    assert len(found) == len(expected)
    for ids, wanted in zip(found, expected, strict=True):
        assert ids.dtype == np.uint16
        assert ids.tolist() == wanted.tolist()
        assert not set(ids.tolist()) & set(tokenizer.special_ids)
    assert len(found[0]) == 1
    assert max(map(len, found)) > 50_000
    assert tokenizer.decode(found[1]) == "nul \0 character"
    assert len(stored(made / "mds" / "b")) == 1


def test_index_names_both_hashes_of_both_forms_and_no_shard_is_empty(made):
    index = json.loads((made / "mds" / "a" / "index.json").read_text())
    assert len(index["shards"]) > 3
    for entry in index["shards"]:
        assert entry["column_encodings"] == ["ndarray:uint16"]
        assert entry["compression"] == "zstd"
        assert entry["samples"] > 0
        for form in ("raw_data", "zip_data"):
            assert set(entry[form]["hashes"]) == {"sha1", "xxh64"}


def test_attributes_and_counts_agree_with_what_is_stored(made):
    folder = made / "mds" / "a"
    tokenizer = load_tokenizer(made / "tok")
    attributes = json.loads((folder / "restomod.json").read_text())
    found = stored(folder)
    lengths = [len(ids) for ids in found]
    assert attributes["format"] == 1
    assert attributes["special_tokens"] is False
    assert attributes["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert (attributes["column"], attributes["dtype"]) == ("tokens", "uint16")
    assert (attributes["documents"], attributes["tokens"]) == (len(found), sum(lengths))
    assert attributes["mean_tokens_per_document"] == sum(lengths) / len(found)
    assert attributes["vocab_size"] == 320
    assert attributes["longest_document"] == max(lengths)
    assert sum(attributes["length_histogram"].values()) == len(found)
    for length, documents in attributes["length_histogram"].items():
        inside = [n for n in lengths if int(length) <= n < 2 * int(length)]
        assert len(inside) == documents
    assert attributes["dropped"] == {"broken_json": 1, "empty_document": 1}
    assert attributes["altered"] == {"lone_surrogates_replaced": 1}
    assert attributes["sources"] == ["corpus.jsonl", "other.txt"]
    assert str(made) not in (folder / "restomod.json").read_text()
    counts = np.load(folder / "token_counts.npy")
    assert counts.dtype == np.int64
    assert np.array_equal(counts, np.bincount(np.concatenate(found), minlength=320))


def test_equal_inputs_give_equal_bytes(made, tmp_path, monkeypatch):
    monkeypatch.setattr(write_mds, "BATCH_DOCUMENTS", 3)  # batches must not show
    command = ["--tokenizer", str(made / "tok"), "--size-limit", "1kb"]
    command += ["--input", str(made / "corpus.jsonl"), str(made / "other.txt")]
    assert write_mds.main([*command, "--out", str(tmp_path / "again")]) == 0
    names = {p.name for p in (made / "mds" / "a").iterdir()}
    assert names == {p.name for p in (tmp_path / "again").iterdir()}
    for name in names - {"manifest.json"}:
        assert (made / "mds" / "a" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_rerun_is_skipped_and_another_tokenizer_refused(made, tmp_path, capsys):
    command = ["--size-limit", "1kb", "--input", str(made / "other.txt")]
    command += ["--out", str(made / "mds" / "b"), "--tokenizer"]
    assert write_mds.main([*command, str(made / "tok")]) == 0
    assert "up to date" in capsys.readouterr().err
    backend = train_tokenizer.train_bpe(["another one another one"], 320)
    train_tokenizer.save_tokenizer(backend, make(tmp_path / "tok"), 1024)
    assert write_mds.main([*command, str(tmp_path / "tok")]) == 2
    assert "tokenizer_fingerprint" in capsys.readouterr().err


def stub(size):
    """A tokenizer that gives documents of the lengths that their texts spell."""
    dtype = token_dtype(size)
    return SimpleNamespace(
        dtype=dtype,
        vocab_size=-(-size // 64) * 64,
        encode_batch=lambda texts: [np.full(int(t), size - 1, dtype) for t in texts],
    )


def test_documents_without_tokens_are_dropped_and_counted(tmp_path):
    tally = Tally(read=4, kept=4)
    documents = [(str(n), f"f:{n}") for n in (0, 3, 0, 1)]
    tokenizer = stub(100)
    ids = write_mds.tokenised(documents, tokenizer, tally)
    written = write_shards(
        make(tmp_path / "a"), ids, tokenizer, size_limit=1 << 20, compression="zstd"
    )
    assert [len(ids) for ids in stored(tmp_path / "a")] == [3, 1]
    assert (written.documents, written.tokens, written.longest) == (2, 4, 3)
    assert (tally.read, tally.kept, tally.dropped) == (4, 2, {"no_tokens": 2})
    assert tally.problems == ["f:0 (no_tokens)", "f:0 (no_tokens)"]


def test_a_document_above_the_size_limit_has_a_shard_of_its_own(tmp_path):
    documents = [("5000", "f:1"), ("3", "f:2"), ("4", "f:3"), ("6000", "f:4")]
    tokenizer = stub(100)
    write_shards(
        make(tmp_path / "a"),
        write_mds.tokenised(documents, tokenizer, Tally()),
        tokenizer,
        size_limit=1024,
        compression="zstd",
    )
    index = json.loads((tmp_path / "a" / "index.json").read_text())
    assert [entry["samples"] for entry in index["shards"]] == [1, 2, 1]
    assert [len(ids) for ids in stored(tmp_path / "a")] == [5000, 3, 4, 6000]


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path):
    tokenizer = stub(70_000)
    write_shards(
        make(tmp_path / "a"),
        write_mds.tokenised([("5", "f:1")], tokenizer, Tally()),
        tokenizer,
        size_limit=1 << 20,
        compression="zstd:9",
    )
    (ids,) = stored(tmp_path / "a")
    assert ids.dtype == np.uint32
    assert ids.tolist() == [69_999] * 5


def test_only_documents_without_tokens_is_an_error_and_writes_nothing(tmp_path, capsys):
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "x": 5}
    (tmp_path / "vocab").mkdir()
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": n, "content": token, "special": True, "normalized": False}
            | {"lstrip": False, "rstrip": False, "single_word": False}
            for token, n in vocabulary.items()
            if n < 5
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "lowercase": True}
        | {"handle_chinese_chars": True, "strip_accents": None},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocabulary}
        | {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    }
    (tmp_path / "vocab" / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "a.txt").write_text("\0\0")  # the normaliser cleans it away
    command = ["--tokenizer", str(tmp_path / "vocab"), "--input", str(tmp_path / "a.txt")]
    assert write_mds.main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "no_tokens: 1" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "vocab"]


def test_sizes():
    assert parse_size("64mb", "size") == 64 << 20
    assert parse_size("2048", "size") == 2048
    for text in ("4gb", "0", "64", "many", "-1", "1tb"):
        with pytest.raises(UserError, match="--size-limit"):
            parse_size(text, "--size-limit")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to do"),
        (["--out", "o"], "go together"),
        (["--input", "i"], "go together"),
        (["--dataset", "o"], "write it as OUT=IN"),
        (["--dataset", "o="], "write it as OUT=IN"),
        (["--dataset", "o=i", "--dataset", "./o=j"], "output of two data sets"),
        (["--dataset", "o=i", "--dataset", "o/p=j"], "lies inside"),
        (["--dataset", "o=i", "--compression", "lz4"], "use zstd"),
        (["--dataset", "o=i", "--size-limit", "9gb"], "--size-limit 9gb"),
        (["--dataset", "o=i"], "i: no such file"),
    ],
)
def test_impossible_commands_are_refused(made, capsys, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert write_mds.main(["--tokenizer", str(made / "tok"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
