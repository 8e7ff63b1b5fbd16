import csv
import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from restomod.errors import UserError
from restomod.finetune.config import DataConfig
from restomod.finetune.data import load_tables
from tests.finetuning import write

ROWS = [{"text": f"text {n}", "label": n % 2} for n in range(20)]


def read(path, **keys):
    return load_tables(DataConfig(str(path), **keys))


def test_a_file_gives_a_share_as_validation_set_the_same_every_time(tmp_path):
    file = write(tmp_path / "a.jsonl", ROWS)
    train, validation = read(file, validation_share=0.25)
    texts = [train.texts("text"), validation.texts("text")]
    assert [len(part) for part in texts] == [15, 5]
    assert sorted(texts[0] + texts[1]) == sorted(row["text"] for row in ROWS)
    assert read(file, validation_share=0.25)[1].texts("text") == texts[1]
    assert list(map(len, read(file, validation_share=0.999))) == [
        1,
        len(train) + len(validation) - 1,
    ]
    with pytest.raises(UserError, match="is a file and has no splits"):
        read(file, validation="dev")


@pytest.mark.parametrize("kind", ["jsonl", "gz", "parquet", "disk", "other file", "subset"])
def test_train_and_validation_splits_of_all_kinds_of_places_are_read(tmp_path, kind):
    folder, keys = tmp_path / "d", {}
    folder.mkdir()
    if kind == "jsonl":
        write(folder / "train.jsonl", ROWS)
        write(folder / "validation.jsonl", ROWS[:4])
    elif kind == "subset":
        write(folder / "mnli" / "train.jsonl", ROWS)
        write(folder / "mnli" / "validation_matched.jsonl", ROWS[:4])
        keys = {"subset": "mnli", "validation": "validation_matched"}
    elif kind == "gz":
        lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        (folder / "train.jsonl.gz").write_bytes(gzip.compress(lines))
        write(folder / "validation.jsonl", ROWS[:4])
    elif kind == "parquet":
        (folder / "data").mkdir()
        for n, part in enumerate((ROWS[:10], ROWS[10:])):
            name = f"train-0000{n}-of-00002.parquet"
            pq.write_table(pa.Table.from_pylist(part), folder / "data" / name)
        pq.write_table(pa.Table.from_pylist(ROWS[:4]), folder / "data" / "validation.parquet")
    elif kind == "disk":
        parts = {"train": ROWS, "validation": ROWS[:4]}
        splits = {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
        datasets.DatasetDict(splits).save_to_disk(folder / "saved")
        folder /= "saved"
    else:
        keys = {"validation": str(write(tmp_path / "v.jsonl", ROWS[:4]))}
        folder = write(tmp_path / "t.jsonl", ROWS)
    train, validation = read(folder, **keys)
    assert train.texts("text") == [row["text"] for row in ROWS]
    assert validation.values("label") == [row["label"] for row in ROWS[:4]]


def test_csv_and_tsv_are_read_as_json_lines_are(tmp_path):
    rows = [{"text": 'a, "b"\nc', "label": "yes"}, *ROWS]
    for suffix, dialect in ((".csv", "excel"), (".tsv", "excel-tab")):
        with (tmp_path / f"t{suffix}").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], dialect=dialect)
            writer.writeheader()
            writer.writerows(rows)
        read_back, held = read(tmp_path / f"t{suffix}", validation_share=0.01)
        texts = read_back.texts("text") + held.texts("text")
        assert sorted(texts) == sorted(str(row["text"]) for row in rows)
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"t.xlsx: is of no kind that is read: .jsonl"):
        read(tmp_path / "t.xlsx")


def test_names_of_classes_come_with_the_data_set(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    datasets.Dataset.from_list(ROWS, features).save_to_disk(tmp_path / "saved")
    train, _ = read(tmp_path / "saved")
    assert train.class_names("label") == ["no", "yes"]
    datasets.Dataset.from_list(ROWS, features).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0].class_names("label") == ["no", "yes"]
    assert read(write(tmp_path / "a.jsonl", ROWS))[0].class_names("label") == []


def test_a_template_joins_columns(tmp_path):
    rows = [{"q": "why", "a": n} for n in range(4)]
    train, _ = read(write(tmp_path / "a.jsonl", rows), validation_share=0.5)
    assert set(train.texts("{q}? {a}!")) < {f"why? {n}!" for n in range(4)}
    with pytest.raises(UserError, match="has no column b; it has q, a"):
        train.texts("{q} {b}")
    with pytest.raises(UserError, match=r"columns: '{q': is no template such as .*expected '}'"):
        train.texts("{q")
    with pytest.raises(UserError, match="has no column ; it has q, a"):
        train.texts("{q} {}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.jsonl: holds no examples"),
        ('{"text": "a"}\n{"text": ', "a.jsonl: cannot be read: JSON parse error"),
        ('{"text": "a"}\n{"text": 1}\n', "a.jsonl: cannot be read: JSON parse error"),
        ('{"text": "a"}\n', "1 example cannot be parted"),
        ('{"text": "a"}\n{"text": null}\n{"text": "b"}\n', "row 2: text is empty"),
        ('{"text": ["a"]}\n{"text": ["b"]}\n', "row 1: text is a list, text is expected"),
        ('{"body": "a"}\n{"body": "b"}\n', "has no column text; it has body. Name yours under"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name_and_row(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)

    def texts():
        tables = load_tables(DataConfig(str(tmp_path / "a.jsonl"), validation_share=0.01))
        return [table.texts("text") for table in tables]

    with pytest.raises(UserError, match=message):
        texts()


def test_places_that_are_not_there_are_named(tmp_path):
    write(tmp_path / "d" / "train.jsonl", ROWS)
    write(tmp_path / "d" / "dev.jsonl", ROWS)
    for keys, message in (
        ({"train": "all"}, "has no split all; there is dev, train"),
        ({"validation": "test"}, "has no split test; there is dev, train"),
        ({"validation": "x.jsonl"}, "x.jsonl: no such file"),
        ({"subset": "mnli"}, "has no folder mnli; folders there: none"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path / "d", **keys)
    with pytest.raises(UserError, match="no such file or folder"):
        read(tmp_path / "other.jsonl")
    with pytest.raises(UserError, match="nyu-mll/glue mnli: no such folder here, and the hub"):
        read("nyu-mll/glue", subset="mnli")
