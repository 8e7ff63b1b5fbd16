import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from restomod.config import ProbeConfig
from restomod.data.labelled import read_labelled
from restomod.errors import UserError

ROWS = [{"body": f"text {n}", "kind": n % 3, "rest": [n]} for n in range(40)]


def written(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return ProbeConfig(path=str(path), text="body", label="kind", examples=30)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_first_examples_are_divided_in_the_same_way_each_time(tmp_path, name):
    config = written(tmp_path / name, ROWS)
    found = read_labelled(config)
    assert sorted(zip(found.texts, found.labels, strict=True)) == sorted(
        (row["body"], str(row["kind"])) for row in ROWS[:30]
    )
    assert found.fit == 15
    assert found == read_labelled(config)
    assert found.texts != [row["body"] for row in ROWS[:30]]


def test_rows_without_a_text_or_a_label_are_left_out(tmp_path):
    holes = [{**ROWS[0], "body": None}, {**ROWS[1], "kind": None}, {**ROWS[2], "body": ""}]
    found = read_labelled(written(tmp_path / "a.jsonl", holes + ROWS[3:20]))
    assert len(found.texts) == 17


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        (ROWS, "title", "has no title; there is body, kind, rest"),
        ([{"body": "a", "kind": 1}] * 9, "body", "has 1 label"),
        ([], "body", "Empty JSON stream"),
    ],
)
def test_what_cannot_be_a_task_is_refused(tmp_path, rows, column, message):
    config = written(tmp_path / "a.jsonl", rows)
    config.text = column
    with pytest.raises(UserError, match=message):
        read_labelled(config)


def test_a_file_that_is_not_there_is_told_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^tasks.jsonl: no such file in {tmp_path}$"):
        read_labelled(ProbeConfig(path="tasks.jsonl"))


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read"):
        read_labelled(ProbeConfig(path=str(tmp_path / "a.parquet")))
