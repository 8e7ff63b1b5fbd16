"""Every format that a recipe may name is read, its description heeded, its damage reported."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from restomod.errors import UserError
from restomod.prepare.files import find_files
from restomod.prepare.pieces import Piece, plan_units
from restomod.prepare.readers import read_piece
from restomod.prepare.records import Reading

TEXTS = ["first", "zweites ü", "", "third\nwith lines", "東京 😀"]
KEPT = [text for text in TEXTS if text]


def read(paths, split="", **options):
    """Return (texts, reasons) of whatever `paths` hold."""
    reading = Reading(**options)
    texts, reasons = [], []
    for file in find_files([paths], split).files:
        for record in read_piece(Piece(file), reading):
            texts += [record.text] if not record.reason else []
            reasons += [(record.reason, record.number)] if record.reason else []
    return texts, reasons


def test_a_saved_hugging_face_data_set(tmp_path):
    import datasets

    saved = datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(5))})
    saved.save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "cache-123.arrow").write_bytes(b"left by a map")
    assert read(tmp_path / "one") == (KEPT, [("empty_document", 3)])
    found = find_files([tmp_path / "one"])
    assert found.skipped == {"dataset_info.json": 1, "state.json": 1, ".arrow": 1}


def test_one_split_of_a_dataset_dict_is_read(tmp_path):
    import datasets

    def made(texts):
        return datasets.Dataset.from_dict({"text": texts})

    both = datasets.DatasetDict({"train": made(["a", "b"]), "test": made(["c"])})
    both.save_to_disk(tmp_path / "both")
    assert read(tmp_path / "both")[0] == ["a", "b"]
    assert find_files([tmp_path / "both"]).skipped["split test"] == 1
    assert read(tmp_path / "both", "test")[0] == ["c"]
    with pytest.raises(UserError, match="no split 'dev'; name one of train, test"):
        read(tmp_path / "both", "dev")
    other = datasets.DatasetDict({"everything": made(["d"])})
    other.save_to_disk(tmp_path / "other")
    assert read(tmp_path / "other")[0] == ["d"]


def test_a_hub_snapshot_whose_files_are_links(tmp_path):
    blob = tmp_path / "blobs" / "abc"
    blob.parent.mkdir()
    pq.write_table(pa.table({"text": TEXTS}), blob)
    snapshot = tmp_path / "snapshots" / "main" / "data"
    snapshot.mkdir(parents=True)
    (snapshot / "train-00000-of-00001.parquet").symlink_to(blob)
    (snapshot / "train-00001-of-00001.parquet").symlink_to(tmp_path / "nowhere")
    (snapshot.parent / "dataset_infos.json").write_text("{}")
    texts, reasons = read(tmp_path / "snapshots" / "main")
    assert texts == KEPT
    assert reasons == [("empty_document", 3), ("unreadable_file", 0)]


def test_an_arrow_file_and_a_damaged_one(tmp_path):
    table = pa.table({"text": [f"{n} " * 500 for n in range(100)]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=10)
    assert read(tmp_path / "a.arrow")[0] == table["text"].to_pylist()
    with pa.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as stream:
        stream.write_table(table, max_chunksize=10)
    data = (tmp_path / "b.arrow").read_bytes()
    (tmp_path / "b.arrow").write_bytes(data[: len(data) // 2])
    texts, reasons = read(tmp_path / "b.arrow")
    assert texts == table["text"].to_pylist()[: len(texts)]
    assert 0 < len(texts) < 100
    assert reasons == [("broken_file", 0)]


@pytest.mark.parametrize("compression", [None, "zstd", "zstd:7", "gz"])
def test_an_mds_folder_with_a_text_column(tmp_path, compression):
    from streaming import MDSWriter

    columns = {"text": "str", "id": "int", "tags": "json", "raw": "bytes"}
    out = str(tmp_path / "mds")
    with MDSWriter(columns=columns, out=out, compression=compression, size_limit=300) as writer:
        for number, text in enumerate(TEXTS):
            writer.write({"text": text, "id": number, "tags": text, "raw": text.encode()})
    assert len(json.loads((tmp_path / "mds" / "index.json").read_text())["shards"]) > 1
    for column in ("text", "tags", "raw"):
        texts, reasons = read(tmp_path / "mds", text_fields=(column,))
        assert texts == KEPT
        assert [reason for reason, _ in reasons] == ["empty_document"]
    assert read(tmp_path / "mds", text_fields=("text", "tags"))[0][0] == "first\n\nfirst"
    assert {r for r, _ in read(tmp_path / "mds", text_fields=("id",))[1]} == {"non_string_field"}
    assert {r for r, _ in read(tmp_path / "mds", text_fields=("x",))[1]} == {"missing_field"}
    first, second = sorted(tmp_path.glob("mds/shard*"))[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-20])
    texts, reasons = read(tmp_path / "mds")
    assert len(texts) < len(KEPT)
    assert {"unreadable_file", "broken_file"} <= {reason for reason, _ in reasons}


def test_fields_are_picked_joined_and_looked_up_inside_of_objects(tmp_path):
    record = {"title": "T", "body": {"text": "B", "n": 1}, "a.b": "dotted"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        path = tmp_path / name
        assert read(path, text_fields=("title", "body.text"))[0] == ["T\n\nB"]
        assert read(path, text_fields=("a.b",))[0] == ["dotted"]
        assert read(path, text_fields=("body.n",))[1][0][0] == "non_string_field"
        assert read(path, text_fields=("body.x",))[1][0][0] == "missing_field"
        assert read(path, text_fields=("title.x",))[1][0][0] == "missing_field"


def test_text_files_as_lines_and_in_another_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes("größer\n\nkleiner\n".encode("latin-1"))
    assert read(tmp_path, text_documents="line", encoding="latin-1") == (
        ["größer", "kleiner"],
        [("empty_line", 2)],
    )
    assert read(tmp_path, encoding="latin-1")[0] == ["größer\n\nkleiner\n"]
    (record,) = read_piece(Piece(find_files([tmp_path]).files[0]), Reading())
    assert record.undecodable
    assert record.text == "gr\ufffd\ufffder\n\nkleiner\n"


def test_records_above_the_limit_are_dropped_without_the_others(tmp_path):
    huge = "x" * 10_000_000
    (tmp_path / "a.jsonl.gz").write_bytes(
        gzip.compress(b"".join(json.dumps({"text": t}).encode() + b"\n" for t in ("a", huge, "b")))
    )
    (tmp_path / "b.txt").write_text(huge)
    pq.write_table(pa.table({"text": ["c", huge, "d"]}), tmp_path / "c.parquet")
    texts, reasons = read(tmp_path, max_record_bytes=1_000_000)
    assert texts == ["a", "b", "c", "d"]
    assert reasons == [("record_too_large", 2), ("record_too_large", 0), ("record_too_large", 2)]
    assert read(tmp_path / "a.jsonl.gz")[0] == ["a", huge, "b"]


def test_an_unreadable_file_is_a_record_of_its_own(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (file,) = find_files([tmp_path]).files
    (tmp_path / "a.jsonl").unlink()
    (record,) = read_piece(Piece(file), Reading())
    assert (record.reason, record.number) == ("unreadable_file", 0)
    assert "No such file" in record.detail


def test_patterns_and_folders_of_an_object_store_are_read_in_order():
    import fsspec

    system = fsspec.filesystem("memory")
    for path in ("in/b/2.jsonl", "in/b/1.jsonl", "in/a.jsonl", "in/.hidden.jsonl", "in/x.csv"):
        system.pipe_file(f"/formats/{path}", json.dumps({"text": path}).encode())
    try:
        assert read("memory://formats/in")[0] == ["in/a.jsonl", "in/b/1.jsonl", "in/b/2.jsonl"]
        assert read("memory://formats/in/b/*.jsonl")[0] == ["in/b/1.jsonl", "in/b/2.jsonl"]
        found = find_files(["memory://formats/in"])
        assert found.skipped == {"hidden": 1, ".csv": 1}
        assert all((file.size and file.version == "") or file.size for file in found.files)
        with pytest.raises(UserError, match="no such file"):
            find_files(["memory://formats/nowhere"])
        with pytest.raises(UserError, match="no file that can be read matches"):
            find_files(["memory://formats/in/*.parquet"])
        with pytest.raises(UserError, match="cannot tell how"):
            find_files(["memory://formats/in/x.csv"])
    finally:
        system.rm("/formats", recursive=True)


def test_large_files_are_cut_small_ones_put_together_and_every_record_is_read_once(tmp_path):
    texts = [f"{n} " + "x" * (n * 37 % 200) for n in range(500)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "b.parquet", row_group_size=50)
    for number in range(40):
        (tmp_path / f"c{number:02d}.jsonl").write_text(json.dumps({"text": f"small {number}"}))
    files = {"source": find_files([tmp_path]).files}
    for size in (1024, 4096, 1 << 20):
        units = plan_units(files, {"source": False}, size)
        assert [unit.number for unit in units] == list(range(len(units)))
        pieces = [piece for unit in units for piece in unit.pieces]
        found = [record.text for piece in pieces for record in read_piece(piece, Reading())]
        assert found == [*texts, *texts, *(f"small {n}" for n in range(40))]
        of_each = [sum(p.end - p.begin or p.file.size for p in u.pieces) for u in units]
        if size == 4096:
            assert len(units) > 20
            cut = [u for u in units if u.pieces[0].file.path.endswith("a.jsonl")]
            assert len(cut) > 10
            assert max(map(len, (u.pieces for u in units))) > 10
            assert np.max(of_each) <= size
    assert len(plan_units(files, {"source": False}, 1 << 20)) == 1


def test_a_hub_snapshot_gives_the_split_that_is_asked_for_and_no_readme(tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        table = pa.table({"text": [split]})
        pq.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("# about it")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.json").write_text('{"text": "hidden"}')
    assert [Path(f.path).name[:5] for f in find_files([tmp_path]).files] == ["test-", "train"]
    found = find_files([tmp_path], "train")
    assert [Path(file.path).name[:5] for file in found.files] == ["train"]
    assert found.skipped == {"README.md": 1, "hidden folder": 1, "another split": 1}
    with pytest.raises(UserError, match="named for the split 'valid'"):
        find_files([tmp_path], "valid")


def test_own_folders_are_passed_over_in_folders_and_patterns(tmp_path):
    for name in ("in.jsonl", "out/rejects.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "a"}')
    for path in (tmp_path, tmp_path / "**" / "*.jsonl"):
        found = find_files([path], own=[str(tmp_path / "out")])
        assert [Path(file.path).name for file in found.files] == ["in.jsonl"]
        assert len(find_files([path]).files) == 2


def test_a_null_among_several_fields_is_left_out(tmp_path):
    rows = [{"title": None, "body": "a"}, {"title": "t", "body": "b"}, {"title": None}]
    rows[2]["body"] = None
    pq.write_table(pa.table({"meta": pa.array(rows)}), tmp_path / "a.parquet")
    untitled = pa.array([{"title": None, "body": "c"}])
    pq.write_table(pa.table({"meta": untitled}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"meta": row}) + "\n" for row in rows))
    texts, reasons = read(tmp_path, text_fields=("meta.title", "meta.body"))
    assert texts == ["a", "t\n\nb", "c", "a", "t\n\nb"]
    assert reasons == [("non_string_field", 3)] * 2
    assert read_first_problem(tmp_path / "a.parquet", "meta.titel") == (
        "no column 'meta.titel' among: meta.title, meta.body"
    )


def read_first_problem(path, field):
    (file,) = find_files([path]).files
    return next(iter(read_piece(Piece(file), Reading(text_fields=(field,))))).detail
