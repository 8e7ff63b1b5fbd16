"""Many texts from files to files, in parts that are written once."""

import gzip
import json
import logging
import os
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import restomod
from restomod import cli, save_transformers
from restomod.data.tokenizer import load_tokenizer
from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.vectors import bulk
from restomod.vectors.bulk import Options, Sharing, embed_files
from restomod.vectors.texts import TextEncoder
from tests.conftest import documents

TEXTS = ["", "x", *documents("prose", 40), "long " * 500, "é ü"]


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tiny.recipe["tokenizer"])
    ids = {"cls_id": tokenizer.cls_id, "sep_id": tokenizer.sep_id, "pad_id": tokenizer.pad_id}
    shape = {**tiny.recipe["model"], "vocab_size": tokenizer.vocab_size, **ids}
    out = tmp_path_factory.mktemp("model") / "exported"
    save_transformers(
        MaskedLM(EncoderConfig(**shape, max_sequence_length=64)), out, tiny.recipe["tokenizer"]
    )
    return str(out)


@pytest.fixture(scope="module")
def expected(model):
    return TextEncoder.load(model).embed(TEXTS)


def parquet(path, texts=TEXTS, groups=7, **columns):
    columns = {"text": pa.array(texts, pa.string()), **columns}
    pq.write_table(pa.table(columns), path, row_group_size=groups)
    return str(path)


def jsonl(path, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        file.writelines(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    return str(path)


ALONE = Sharing()


def run(model, inputs, out, sharing=ALONE, **options):
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return embed_files(model, inputs, str(out), Options(**options), sharing=sharing)


def read(out):
    """Return the output as one table, in order."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("part-*.parquet")))


def vectors(out):
    return np.stack([np.array(v, np.float32) for v in read(out)["vector"].to_pylist()])


def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_rows_of_all_files_get_their_vectors_in_order(model, expected, tmp_path):
    first = parquet(tmp_path / "a.parquet", TEXTS[:20])
    second = jsonl(tmp_path / "b.jsonl.gz", [{"text": text} for text in TEXTS[20:]])
    text = run(model, [first, second], tmp_path / "out", part_rows=9)
    assert "complete, 44 rows in 5 parts" in text
    table = read(tmp_path / "out")
    assert table["row"].to_pylist() == list(range(44))
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 32)
    np.testing.assert_allclose(vectors(tmp_path / "out"), expected, atol=1e-5)
    assert json.loads((tmp_path / "out" / "complete.json").read_text()) == {"rows": 44, "parts": 5}


def test_ids_and_kept_columns_stand_beside_the_vectors(model, expected, tmp_path):
    keys, tags = [f"k{n}" for n in range(44)], [[n, n] for n in range(44)]
    file = parquet(tmp_path / "a.parquet", id=keys, tags=tags, other=keys)
    run(model, file, tmp_path / "out", part_rows=20, id_column="id", keep=("tags",))
    table = read(tmp_path / "out")
    assert table.column_names == ["id", "tags", "vector"]
    assert (table["id"].to_pylist(), table["tags"].to_pylist()) == (keys, tags)
    rows = [{"n": n, "where": None if n == 3 else {"a": n}, "text": t} for n, t in enumerate(TEXTS)]
    lines = jsonl(tmp_path / "b.jsonl", rows)
    run(model, lines, tmp_path / "lines", part_rows=20, id_column="n", keep=("where",))
    table = read(tmp_path / "lines")
    assert table["n"].to_pylist() == list(range(44))
    assert table["where"].to_pylist()[2:5] == ['{"a": 2}', None, '{"a": 4}']
    np.testing.assert_allclose(vectors(tmp_path / "lines"), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_run_that_was_stopped_goes_on_at_the_first_missing_part(
    model, tmp_path, monkeypatch, kind
):
    if kind == "parquet":
        file = parquet(tmp_path / "a.parquet", groups=13)
    else:
        file = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    run(model, file, tmp_path / "whole", part_rows=10)
    write = bulk._write

    def dying(table, path):
        write(table, path)
        if "part-000002" in path.name:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr(bulk, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        run(model, file, out, part_rows=10)
    assert sorted(files(out)) == ["embed.json", "part-000000.parquet", "part-000001.parquet"]
    monkeypatch.setattr(bulk, "_write", write)
    (out / "part-000000.parquet").unlink()
    there = (out / "part-000001.parquet").stat().st_mtime_ns
    assert "embedded 34 rows" in run(model, file, out, part_rows=10)
    assert (out / "part-000001.parquet").stat().st_mtime_ns == there
    assert files(out) == files(tmp_path / "whole")
    assert "no part was left to make" in run(model, file, out, part_rows=10)


def test_processes_share_the_parts(model, tmp_path):
    file = parquet(tmp_path / "a.parquet")
    run(model, file, tmp_path / "whole", part_rows=10)
    text = run(model, file, tmp_path / "out", Sharing(1, 2), part_rows=10)
    assert "3 of 5 parts are still missing" in text
    assert not (tmp_path / "out" / "complete.json").exists()
    assert "complete" in run(model, file, tmp_path / "out", Sharing(0, 2), part_rows=10)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_another_model_input_or_option_is_refused_by_name(model, tiny, tmp_path):
    file = parquet(tmp_path / "a.parquet")
    run(model, file, tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(UserError, match=r"options.pooling: 'mean' there, 'cls' now"):
        run(model, file, tmp_path / "out", pooling="cls")
    status = (tmp_path / "a.parquet").stat()
    parquet(tmp_path / "a.parquet", TEXTS[:-1])
    with pytest.raises(UserError, match=r"inputs.0.bytes: \d+ there, \d+ now"):
        run(model, file, tmp_path / "out")
    parquet(tmp_path / "a.parquet")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = TextEncoder.load(model).model
    with torch.no_grad():
        next(changed.parameters())[0, 0] += 1
    save_transformers(changed, tmp_path / "other", tiny.recipe["tokenizer"])
    with pytest.raises(UserError, match=r"model.sha256: "):
        run(str(tmp_path / "other"), file, tmp_path / "out")
    shutil.copytree(model, tmp_path / "copy")
    assert "no part was left to make" in run(str(tmp_path / "copy"), file, tmp_path / "out")
    assert files(tmp_path / "out") == before
    with pytest.raises(UserError, match="exists and holds no vectors"):
        run(model, file, tmp_path / "other")


def test_options_shape_the_vectors(model, expected, tmp_path):
    file = parquet(tmp_path / "a.parquet")
    run(model, file, tmp_path / "a", normalize=True, dtype="float16", limit=30, part_rows=12)
    unit = expected[:30] / np.linalg.norm(expected[:30], axis=1, keepdims=True)
    assert read(tmp_path / "a").schema.field("vector").type == pa.list_(pa.float16(), 32)
    np.testing.assert_allclose(vectors(tmp_path / "a"), unit, atol=1e-3)
    run(model, file, tmp_path / "b", pooling="cls", max_tokens=9)
    short = TextEncoder.load(model, max_tokens=9).embed(TEXTS, "cls")
    np.testing.assert_allclose(vectors(tmp_path / "b"), short, atol=1e-5)


def test_rows_without_a_text_keep_their_place(model, expected, tmp_path, caplog):
    rows = [{"text": TEXTS[2]}, {"text": None}, "{broken\n", "\n", {"text": 5}, ["x"], {}]
    rows += [{"text": TEXTS[3]}, '{"text": "\\ud800"}\n']
    file = jsonl(tmp_path / "a.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        text = run(model, file, tmp_path / "out", part_rows=3)
    assert "5 rows have no text (null: 2, no JSON object: 2, no string: 1)" in text
    assert f"{file}, line 3: no text: no JSON object" in caplog.text
    found = read(tmp_path / "out")["vector"].to_pylist()
    assert [v is None for v in found] == [False, *[True] * 5, False, False]
    np.testing.assert_allclose(np.array(found[6]), expected[3], atol=1e-5)
    nulls = parquet(tmp_path / "n.parquet", [None, TEXTS[2], None])
    assert "2 rows have no text" in run(model, nulls, tmp_path / "nulls")
    assert [v is None for v in read(tmp_path / "nulls")["vector"].to_pylist()] == [1, 0, 1]


def test_bad_input_is_refused_with_what_is_wrong(model, tmp_path):
    file = parquet(tmp_path / "a.parquet", n=list(range(44)))
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"a.parquet: has no column 'body'; there are: text, n"):
        run(model, file, out, text_column="body")
    with pytest.raises(UserError, match=r"'n' holds int64; --text-column"):
        run(model, file, out, text_column="n")
    with pytest.raises(UserError, match="column 'vector': the output would have two"):
        run(model, parquet(tmp_path / "v.parquet", vector=TEXTS), out, keep=("vector",))
    lines = jsonl(tmp_path / "b.jsonl", [{"body": "x"}])
    with pytest.raises(UserError, match=r"b.jsonl, line 1: has no column 'text'; there are: body"):
        run(model, lines, out)
    with pytest.raises(UserError, match="no such file"):
        run(model, str(tmp_path / "none.parquet"), out)
    (tmp_path / "c.parquet").write_bytes(b"PAR1 but no more than that")
    with pytest.raises(UserError, match=r"c.parquet: cannot be read as Parquet"):
        run(model, str(tmp_path / "c.parquet"), out)
    (tmp_path / "d.txt").write_text("text")
    with pytest.raises(UserError, match="only Parquet files and JSON lines"):
        run(model, str(tmp_path / "d.txt"), out)
    for empty in (parquet(tmp_path / "e.parquet", []), jsonl(tmp_path / "e.jsonl", [])):
        with pytest.raises(UserError, match="holds no rows"):
            run(model, empty, out)
    assert not out.exists()


def test_files_that_break_off_or_disagree_stop_it_where_they_do(model, tmp_path):
    whole = gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in TEXTS).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a.jsonl.gz: cannot be read to its end"):
        run(model, str(tmp_path / "a.jsonl.gz"), tmp_path / "a")
    file = tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": TEXTS * 50}), file, row_group_size=500, compression="snappy")
    start = pq.read_metadata(file).row_group(2).column(0).data_page_offset
    damaged = bytearray(file.read_bytes())
    damaged[start : start + 200] = b"\xff" * 200
    file.write_bytes(damaged)
    with pytest.raises(UserError, match=r"b.parquet: cannot be read from row 769 on"):
        run(model, str(file), tmp_path / "b", part_rows=400)
    assert len(list((tmp_path / "b").glob("part-*"))) == 1
    rows = [{"text": "x", "id": 1}, {"text": "y", "id": "one"}]
    with pytest.raises(UserError, match=r"line 2: 'id' holds a str, and int64 in the first row"):
        run(model, jsonl(tmp_path / "c.jsonl", rows), tmp_path / "c", id_column="id")
    one, two = tmp_path / "1.parquet", tmp_path / "2.parquet"
    parquet(one, id=list(range(44)))
    parquet(two, id=TEXTS)
    with pytest.raises(UserError, match=r"2.parquet: 'id' holds string, and int64 in the first"):
        run(model, [str(one), str(two)], tmp_path / "d", id_column="id", part_rows=40)


def test_texts_that_are_cut_are_counted(model, tmp_path):
    rows = [{"text": "a b c d e f g h"}, {"text": "a"}, {"text": "a b c d e f g h i"}]
    file = jsonl(tmp_path / "a.jsonl", rows)
    cut = "2 texts fill the 5 tokens that are read of each; what is longer was cut"
    assert cut in run(model, file, tmp_path / "short", max_tokens=5)
    assert "was cut" not in run(model, file, tmp_path / "whole")
    one = run(
        model,
        jsonl(tmp_path / "b.jsonl", [*rows[:1], {"text": 1}]),
        tmp_path / "one",
        max_tokens=5,
        limit=2,
    )
    assert "embedded 2 rows, 5 tokens" in one
    assert "1 text fills the 5 tokens" in one
    assert "1 row has no text" in one


def test_object_stores_are_read_and_written(model, expected, tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    store.put_file(parquet(tmp_path / "a.parquet"), "/texts/a.parquet")
    run(model, "memory://texts", "memory://made/vectors", part_rows=30)
    store.rm_file("/made/vectors/part-000001.parquet")
    text = run(model, "memory://texts", "memory://made/vectors", part_rows=30)
    assert "embedded 14 rows" in text
    store.get("/made/vectors", str(tmp_path / "out"), recursive=True)
    np.testing.assert_allclose(vectors(tmp_path / "out"), expected, atol=1e-5)


def test_command_and_python_give_the_same(model, expected, tmp_path, monkeypatch, capsys):
    file = parquet(tmp_path / "a.parquet")
    words = ["embed", model, file, "--out", str(tmp_path / "out"), "--normalize", "--shard", "0/1"]
    monkeypatch.setattr(sys, "argv", ["restomod", *words])
    assert cli.main() == 0
    captured = capsys.readouterr()
    assert "tokens/s" in captured.out
    assert "row 44 of 44" in captured.err
    python = restomod.embed(model, TEXTS, normalize=True)
    np.testing.assert_allclose(vectors(tmp_path / "out"), python, atol=1e-5)
    np.testing.assert_allclose(restomod.embed(TextEncoder.load(model), TEXTS), expected, atol=1e-6)
    monkeypatch.setattr(sys, "argv", ["restomod", *words[:-1], "4/4"])
    with pytest.raises(SystemExit):
        cli.main()


def test_a_batch_that_does_not_fit_says_what_to_do(model, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(TextEncoder, "embed_ids", full)
    with pytest.raises(UserError, match="smaller --batch-tokens"):
        run(model, parquet(tmp_path / "a.parquet"), tmp_path / "out")


def test_windows_are_bounded_by_texts_and_by_characters(monkeypatch):
    monkeypatch.setattr(bulk, "WINDOW_TEXTS", 4)
    monkeypatch.setattr(bulk, "WINDOW_CHARACTERS", 100)
    rows = [bulk.Rows(["x" * size], []) for size in (1, 1, 1, 1, 1, 99, 500, 2)]
    cut = [[len(t) for t in window.texts] for window in bulk._cut(iter(rows), 0)]
    assert cut == [[1, 1, 1, 1], [1, 99], [500], [2]]
