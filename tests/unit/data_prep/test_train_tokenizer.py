"""The vocabulary has the size asked for, and equal inputs give equal files."""

import json

import fsspec
import pytest
import train_tokenizer
import write_mds

from restomod.data.tokenizer import load_tokenizer
from restomod.prepare.files import find_files
from restomod.prepare.readers import Tally

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write(path, texts, field="text"):
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def corpus(tmp_path):
    words = [f"word{n} and{n % 7} the{n % 13}" for n in range(3000)]
    return write(tmp_path / "a.jsonl", [" ".join(words[n : n + 30]) for n in range(0, 3000, 10)])


def train(*arguments):
    return train_tokenizer.main([str(argument) for argument in arguments])


def test_two_runs_write_equal_files_of_exactly_the_size_asked_for(tmp_path, corpus):
    for name in ("one", "two"):
        assert train("--input", corpus, "--vocab-size", 448, "--out", tmp_path / name) == 0
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    tokenizer = load_tokenizer(tmp_path / "one")
    assert (tokenizer.size, tokenizer.vocab_size) == (448, 448)
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["result"]["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert manifest["result"]["documents_kept"] == 300
    assert manifest["result"]["unused_tokens"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "one", "two"]


def test_texts_in_an_object_store_become_a_tokenizer_and_shards(tmp_path, capsys):
    store = fsspec.filesystem("memory")
    lines = "".join(json.dumps({"text": f"the text of number {n}"}) + "\n" for n in range(300))
    store.pipe_file("/corpus/a.jsonl", lines.encode())
    tokenizer, shards = tmp_path / "tokenizer", tmp_path / "mds"
    for _ in range(2):
        words = ("--input", "memory://corpus", "--out")
        assert train(*words, tokenizer, "--vocab-size", 320) == 0
        assert write_mds.main(["--tokenizer", str(tokenizer), *words, str(shards)]) == 0
    assert capsys.readouterr().err.count("up to date") == 2
    (given,) = json.loads((shards / "manifest.json").read_text())["inputs"]
    assert (given["path"], given["bytes"]) == ("memory:///corpus/a.jsonl", len(lines))


def test_what_the_corpus_cannot_fill_is_filled_with_unused_tokens(tmp_path, capsys):
    corpus = write(tmp_path / "a.jsonl", ["abc abc abc"])
    assert train("--input", corpus, "--vocab-size", 320, "--out", tmp_path / "t") == 0
    assert "warning: the corpus fills" in capsys.readouterr().err
    tokenizer = load_tokenizer(tmp_path / "t")
    assert tokenizer.size == 320
    unused = tokenizer.backend.token_to_id("[unused0]")
    assert unused in tokenizer.reserved_ids
    assert tokenizer.decode(tokenizer.encode_batch(["日本 \0"])[0]) == "日本 \0"


def test_mask_takes_the_space_before_it(tmp_path, corpus):
    import transformers

    train("--input", corpus, "--vocab-size", 320, "--out", tmp_path / "t")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    assert tokenizer("a [MASK] b")["input_ids"] == tokenizer("a[MASK] b")["input_ids"]
    assert tokenizer("a", "b")["input_ids"][-1] == tokenizer.sep_token_id


@pytest.mark.parametrize(("size", "said"), [(5000, "use 4992 or 5056"), (256, "use 320 or more")])
def test_an_impossible_vocabulary_size_is_refused(tmp_path, corpus, capsys, size, said):
    assert train("--input", corpus, "--vocab-size", size, "--out", tmp_path / "t") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_the_sample_is_spread_evenly_and_keeps_to_its_budget():
    documents = [f"{n:05}" + "x" * (n % 50) for n in range(10_000)]
    total = sum(map(len, documents))
    for share in (0.01, 0.1, 0.4, 0.6, 0.9):
        budget = int(total * share)
        numbers = [int(text[:5]) for text in train_tokenizer.sample_evenly(documents, budget)]
        size = sum(len(documents[n]) for n in numbers)
        assert 0.9 * budget < size <= budget + 55
        assert numbers == sorted(set(numbers))
        for tenth in range(10):
            inside = [n for n in numbers if tenth * 1000 <= n < (tenth + 1) * 1000]
            assert len(inside) == pytest.approx(len(numbers) / 10, rel=0.15, abs=2)
    assert train_tokenizer.sample_evenly(documents, total) == documents
    assert train_tokenizer.sample_evenly(["much too long"], 2) == ["much too long"]
    assert train_tokenizer.sample_evenly([], 10) == []


def test_every_input_has_its_share_and_small_ones_leave_theirs_to_the_others(tmp_path):
    write(tmp_path / "small.jsonl", ["s" * 100] * 100)
    for name in ("b", "c"):
        write(tmp_path / f"{name}.jsonl", [name * 100] * 5000)
    paths = [str(tmp_path / name) for name in ("c.jsonl", "small.jsonl", "b.jsonl")]
    inputs = {path: find_files([path]).files for path in paths}
    parser = train_tokenizer.make_parser()
    arguments = parser.parse_args(["--input", "x", "--out", "x", "--max-mb", "0.21"])
    texts = train_tokenizer._sample(inputs, arguments, Tally())
    shares = {letter: sum(text[0] == letter for text in texts) for letter in "sbc"}
    assert shares == {"s": 100, "b": 1000, "c": 1000}


def test_a_rerun_is_skipped_and_a_changed_one_refused(tmp_path, corpus, capsys):
    command = ["--input", corpus, "--vocab-size", 320, "--out", tmp_path / "t"]
    assert train(*command) == 0
    before = (tmp_path / "t" / "manifest.json").read_bytes()
    capsys.readouterr()
    assert train(*command) == 0
    assert capsys.readouterr().err.strip().endswith("up to date")
    assert (tmp_path / "t" / "manifest.json").read_bytes() == before

    command[3] = 384
    assert train(*command) == 2
    assert "vocab_size 320 -> 384" in capsys.readouterr().err
    assert load_tokenizer(tmp_path / "t").size == 320
    assert train(*command, "--refresh") == 0
    assert load_tokenizer(tmp_path / "t").size == 384

    write(tmp_path / "a.jsonl", ["another corpus"])
    assert train(*command) == 2
    assert "changed inputs" in capsys.readouterr().err
    assert train(*command, "--force") == 0
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path, corpus, capsys):
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    command = ["--input", corpus, "--vocab-size", 320, "--out", out, "--force"]
    assert train(*command) == 2
    assert "was not written by train_tokenizer.py" in capsys.readouterr().err
    assert (out / "thesis.txt").read_text() == "years of work"


def test_a_failure_leaves_nothing_and_what_a_killed_run_left_is_removed(
    tmp_path, corpus, capsys, monkeypatch
):
    empty = write(tmp_path / "empty.jsonl", ["", " "])
    out = tmp_path / "t"
    assert train("--input", empty, "--vocab-size", 320, "--out", out) == 2
    assert "empty_document: 2" in capsys.readouterr().err
    killed = tmp_path / ".t.partial-12345"
    killed.mkdir()
    (killed / "tokenizer.json").write_text("half")

    def fail(*_):
        raise RuntimeError("disk on fire")

    with monkeypatch.context() as patch:
        patch.setattr(train_tokenizer, "save_tokenizer", fail)
        with pytest.raises(RuntimeError, match="disk on fire"):
            train("--input", corpus, "--vocab-size", 320, "--out", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "empty.jsonl"]
