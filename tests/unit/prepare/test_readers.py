"""Every record of every file is read, or counted under the reason why not."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from restomod.errors import UserError
from restomod.prepare import readers, unpack


def read(*paths, field="text"):
    tally = readers.Tally()
    documents = list(readers.read_documents(paths, field, tally))
    assert tally.read == tally.kept + sum(tally.dropped.values())
    assert tally.kept == len(documents)
    assert tally.text_bytes == sum(len(text.encode()) for text, _ in documents)
    return documents, tally


def lines(*texts):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def test_json_lines_and_everything_that_can_be_wrong_with_one(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b"\xef\xbb\xbf"
        + lines("first", "nul \0 inside", "", " \n\t")
        + b"\n"
        + b'{"text": "half\n'
        + b'{"body": "x"}\n'
        + b'{"text": 3}\n'
        + b'{"text": null}\n'
        + b'["text"]\n'
        + b'{"text": "lone \\ud800 surrogate"}\r\n'
        + b'{"text": "pair \\ud83d\\ude00"}\n'
        + b'{"text": "latin \xe9"}\n'
        + b"[" * 100_000
        + b"\n"
        + lines("last")[:-1]
    )
    documents, tally = read(file)
    assert [text for text, _ in documents] == [
        "first",
        "nul \0 inside",
        "lone \ufffd surrogate",
        "pair 😀",
        "latin \ufffd",
        "last",
    ]
    assert [int(origin.rsplit(":", 1)[1]) for _, origin in documents] == [1, 2, 11, 12, 13, 15]
    assert tally.dropped == {
        "empty_document": 2,
        "empty_line": 1,
        "broken_json": 2,
        "missing_field": 1,
        "non_string_field": 2,
        "not_an_object": 1,
    }
    assert tally.altered == {"lone_surrogates_replaced": 1, "undecodable_bytes_replaced": 1}
    assert any("a.jsonl:6: " in p and "broken_json" in p for p in tally.problems)
    assert any("a.jsonl:7: no field 'text' among: body" in p for p in tally.problems)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_lines_do_not_depend_on_how_they_fall_into_blocks(tmp_path, monkeypatch, size):
    monkeypatch.setattr(unpack, "BLOCK_BYTES", size)
    texts = ["x" * 50, "é" * 9, "", "tail"]
    (tmp_path / "a.jsonl").write_bytes(lines(*texts))
    assert [text for text, _ in read(tmp_path)[0]] == [t for t in texts if t]


def test_compressed_files_with_several_members(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(
        gzip.compress(lines("one")) + gzip.compress(lines("two")) + b"\0" * 512
    )
    compressor = zstandard.ZstdCompressor()
    (tmp_path / "b.jsonl.zst").write_bytes(
        compressor.compress(lines("three")) + compressor.compress(lines("four"))
    )
    (tmp_path / "c.md.gz").write_bytes(gzip.compress(b"five\nsix"))
    documents, tally = read(tmp_path)
    assert [text for text, _ in documents] == ["one", "two", "three", "four", "five\nsix"]
    assert not tally.dropped


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_broken_off_file_gives_its_whole_lines_and_is_reported(tmp_path, suffix):
    texts = [f"document {n} " + str(hash(n) * 7919 % 10**9) * 20 for n in range(2000)]
    compress = gzip.compress if suffix == "gz" else zstandard.ZstdCompressor().compress
    data = compress(lines(*texts))
    file = tmp_path / f"a.jsonl.{suffix}"
    file.write_bytes(data[: int(len(data) * 0.8)])
    (tmp_path / "b.jsonl").write_bytes(lines("next file"))
    documents, tally = read(tmp_path)
    kept = [text for text, _ in documents]
    assert 0 < len(kept) < 2000
    assert kept == [*texts[: len(kept) - 1], "next file"]
    assert tally.dropped == {"broken_file": 1}
    assert f"{file}: broken off" in tally.problems[0]


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst", "txt.gz", "parquet"])
def test_a_file_that_is_not_what_its_name_says_is_reported(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(b"this is neither " * 100)
    documents, tally = read(tmp_path)
    assert documents == []
    assert tally.dropped == {"broken_file": 1}
    assert str(tmp_path) in tally.problems[0]


def test_a_damaged_checksum_is_reported(tmp_path):
    data = bytearray(gzip.compress(lines("one", "two")))
    data[-6] ^= 0xFF
    (tmp_path / "a.jsonl.gz").write_bytes(bytes(data))
    assert read(tmp_path)[1].dropped["broken_file"] == 1


def test_parquet_rows_of_every_kind_of_column(tmp_path):
    values = ["one", None, "", "nul \0", "two"]
    types = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
    for number, kind in enumerate(types):
        table = pa.table({"id": [1, 2, 3, 4, 5], "text": pa.array(values).cast(kind)})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=2)
    pq.write_table(pa.table({"text": [b"raw", b"\xff"]}), tmp_path / "bytes.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "other.parquet")
    documents, tally = read(tmp_path)
    assert [text for text, _ in documents] == ["one", "nul \0", "two"] * 3 + ["raw", "\ufffd"]
    assert documents[1][1].endswith("0.parquet:4")
    assert tally.dropped == {"non_string_field": 5, "empty_document": 3, "missing_field": 1}
    assert tally.altered == {"undecodable_bytes_replaced": 1}


def test_a_parquet_file_with_damaged_pages_gives_the_rows_before_them(tmp_path):
    file = tmp_path / "a.parquet"
    texts = [str(n) * 300 for n in range(4000)]
    table = pa.table({"text": texts})
    pq.write_table(table, file, row_group_size=1000, compression="zstd", use_dictionary=False)
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    file.write_bytes(bytes(data))
    documents, tally = read(file)
    assert [text for text, _ in documents] == texts[: len(documents)]
    assert tally.dropped == {"broken_file": 1}
    assert f"lost from row {len(documents) + 1} on" in tally.problems[0]


def test_folders_are_read_in_the_order_of_paths_and_count_what_they_pass_over(tmp_path):
    for name in ("b/2.txt", "b/10.md", "a.txt", "b/c/1.jsonl"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lines(name) if name.endswith("jsonl") else name.encode())
    for name in ("manifest.json", ".hidden.txt", "x.py", "README"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    documents, tally = read(tmp_path)
    assert [text for text, _ in documents] == ["a.txt", "b/10.md", "b/2.txt", "b/c/1.jsonl"]
    assert tally.skipped_files == {
        "manifest.json": 1,
        "hidden": 1,
        ".py": 1,
        "no suffix": 1,
        "linked folder": 1,
    }


def test_paths_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "nowhere.jsonl")
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(UserError, match="cannot tell how to read it"):
        read(tmp_path / "a.csv")
    with pytest.raises(UserError, match="no file to read"):
        read(tmp_path)
    with pytest.raises(UserError, match="no input"):
        read()


def test_another_field_and_no_document_at_all(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"body": "x"}\n')
    assert read(file, field="body")[0][0][0] == "x"
    _, tally = read(file)
    with pytest.raises(UserError, match=r"missing_field: 1.*among: body.*--text-field"):
        readers.require_documents(tally, [file])
