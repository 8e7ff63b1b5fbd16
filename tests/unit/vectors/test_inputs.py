"""Rows out of files, from any row on."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from restomod.errors import UserError
from restomod.vectors.inputs import Columns, Reader


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """1,500 rows: a Parquet file of uneven row groups, one without rows, and JSON lines."""
    folder = tmp_path_factory.mktemp("inputs")
    texts = [f"text {n}" for n in range(1500)]
    with pq.ParquetWriter(folder / "a.parquet", pa.schema({"text": pa.string()})) as writer:
        for begin, end in ((0, 600), (600, 610), (610, 1100)):
            writer.write_table(pa.table({"text": texts[begin:end]}))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "b.parquet")
    lines = [json.dumps({"text": text}) + "\n" for text in texts[1100:]]
    (folder / "c.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(
    "steps",
    [[(0, 1500)], [(550, 1), (0, 949)], [(3, 300), (800, 200), (5, 192)], [(609, 1), (500, 390)]],
)
def test_rows_are_taken_where_skipping_has_led(folder, steps):
    reader = Reader([str(folder)], Columns("text"))
    place = 0
    for skip, take in steps:
        assert reader.skip(skip) == skip
        place += skip
        taken = [text for rows in reader.take(take) for text in rows.texts]
        assert taken == [f"text {n}" for n in range(place, place + take)]
        place += take
        assert reader.position == place
    assert [*reader.take(5)] == []
    assert reader.skip(5) == 0


def test_the_end_is_found_by_skipping(folder):
    reader = Reader([str(folder)], Columns("text"))
    assert reader.skip(2000) == 1500
    assert (reader.position, [*reader.take(1)]) == (1500, [])


def test_rows_are_counted_where_files_say(folder):
    assert Reader([str(folder)], Columns("text")).rows is None
    assert (
        Reader([str(folder / "a.parquet"), str(folder / "b.parquet")], Columns("text")).rows == 1100
    )


def test_fields_inside_columns_are_read_by_their_path(tmp_path):
    rows = [
        {"meta": {"title": f"title {n}", "deep": {"id": n}}, "a.b": f"flat {n}"} for n in range(5)
    ]
    rows[3]["meta"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "1.parquet")
    (tmp_path / "2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = Columns("meta.title", ("meta.deep.id", "a.b", "meta.title"))
    reader = Reader([str(tmp_path)], columns)
    assert columns.types == [pa.int64(), pa.string(), pa.string()]
    assert reader.skip(1) == 1
    texts, kept = [], []
    for taken in reader.take(99):
        texts += taken.texts
        kept += zip(*(column.to_pylist() for column in taken.kept), strict=True)
    titles = [None if n == 3 else f"title {n}" for n in range(5)]
    assert texts == [*titles[1:], *titles]
    ids = [None if n == 3 else n for n in range(5)]
    whole = list(zip(ids, [f"flat {n}" for n in range(5)], titles, strict=True))
    assert kept == [*whole[1:], *whole]
    for absent in ("meta.author", "meta.title.more", "title"):
        for name in ("1.parquet", "2.jsonl"):
            with pytest.raises(UserError, match=f"has no column '{absent}'; there are: meta, a.b"):
                Reader([str(tmp_path / name)], Columns(absent))
