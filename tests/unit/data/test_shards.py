import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from restomod.config import DataConfig, StreamConfig
from restomod.data import files
from restomod.data.shards import ShardedDataset
from restomod.errors import UserError


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of a data set that a test may damage, and how to open it."""
    shutil.copytree(tiny.folder / "mds" / "prose", tmp_path / "mds")

    def open_it():
        return ShardedDataset("prose", StreamConfig(path=str(tmp_path / "mds")), tmp_path / "cache")

    return tmp_path / "mds", open_it


def all_tokens(dataset):
    return [
        dataset.tokens(shard, n).tolist()
        for shard, count in enumerate(dataset.shard_documents)
        for n in range(count)
    ]


def test_reads_what_streaming_reads(copy):
    from streaming.base.format.mds.reader import MDSReader

    folder, open_it = copy
    dataset = open_it()
    ours = all_tokens(dataset)
    cache = next((folder.parent / "cache" / "shards").iterdir())
    theirs = []
    for entry in json.loads((folder / "index.json").read_text())["shards"]:
        reader = MDSReader.from_json(str(cache), None, entry)
        reader.split = ""
        theirs += [reader[n]["tokens"].tolist() for n in range(entry["samples"])]
    assert ours == theirs
    assert dataset.documents == len(ours)
    assert dataset.attributes.tokens == sum(map(len, ours))


def test_reads_other_columns_and_types(tmp_path):
    from streaming import MDSWriter

    columns = {"id": "str", "input_ids": "ndarray:int64", "weight": "float32"}
    expected = [np.arange(n + 1, dtype=np.int64) * 1000 for n in range(300)]
    with MDSWriter(out=str(tmp_path / "mds"), columns=columns, hashes=["xxh64"]) as writer:
        for n, tokens in enumerate(expected):
            writer.write({"id": "x" * n, "input_ids": tokens, "weight": 1.0})
    dataset = ShardedDataset("s", StreamConfig(path=str(tmp_path / "mds")), tmp_path / "cache")
    assert all_tokens(dataset) == [tokens.tolist() for tokens in expected]
    assert not dataset.attributes.exact


def test_flipped_byte_names_file_and_stream(copy):
    folder, open_it = copy
    shard = sorted(folder.glob("*.zstd"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"{shard.name}.*stream prose.*damaged"):
        open_it().tokens(0, 0)


def test_damaged_cache_is_unpacked_again(copy):
    _, open_it = copy
    expected = all_tokens(open_it())
    for cached in (copy[0].parent / "cache").rglob("*.mds"):
        cached.write_bytes(cached.read_bytes()[:-3] + b"abc")
    assert all_tokens(open_it()) == expected


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_shard_that_leaves_the_cache_before_it_is_opened_is_made_again(copy, monkeypatch):
    dataset = copy[1]()
    prepare, left = files.ShardFiles.prepare, []

    def prepare_and_lose(self, shard):
        path = prepare(self, shard)
        if not left:
            left.append(path)
            path.unlink()
        return path

    monkeypatch.setattr(files.ShardFiles, "prepare", prepare_and_lose)
    assert all_tokens(dataset) == all_tokens(copy[1]())
    assert left


def test_missing_shard_names_file(copy):
    folder, open_it = copy
    shard = sorted(folder.glob("*.zstd"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}.*the shard is missing"):
        open_it().tokens(1, 0)


@pytest.mark.parametrize("file", ["index.json", "restomod.json"])
def test_file_that_may_not_be_read_is_named(copy, monkeypatch, file):
    read = Path.read_bytes

    def refuse(path):
        if path.name == file:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=rf"/{file} \(stream prose\): cannot be read: Permission"):
        copy[1]()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "is not an MDS index"),
        ('{"shards": []}', "lists no shards"),
        ('{"shards": [{"samples": 3}]}', "is not an MDS index"),
        (100_000 * "[", "is not an MDS index"),
    ],
)
def test_broken_index_is_refused(copy, content, message):
    folder, open_it = copy
    (folder / "index.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_it()


def test_token_counts_agree_with_the_recorded_ones(copy):
    folder, open_it = copy
    recorded = open_it().token_counts(512)
    (folder / "token_counts.npy").unlink()
    assert (open_it().token_counts(512) == recorded).all()


@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY\1\0junk"])
def test_damaged_token_counts_are_refused_by_name(copy, content):
    folder, open_it = copy
    (folder / "token_counts.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"token_counts.npy \(stream prose\): is damaged"):
        open_it().token_counts(512)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "records no tokens"),
        ({"tokens": -5}, "cannot be read: ValueError"),
        ({"tokens": float("inf")}, "cannot be read: ValueError"),
        ({"tokens": 10**30}, "cannot be read: ValueError"),
        ({"length_histogram": [1]}, "cannot be read: AttributeError"),
        ({"length_histogram": {"1": -4}}, "cannot be read: ValueError"),
    ],
)
def test_odd_recorded_figures_are_refused(copy, changes, message):
    folder, open_it = copy
    recorded = json.loads((folder / "restomod.json").read_text())
    (folder / "restomod.json").write_text(json.dumps(recorded | changes))
    with pytest.raises(UserError, match=rf"restomod.json \(stream prose\): {message}"):
        open_it()


def test_remote_data_is_downloaded_by_streaming(copy, tmp_path, monkeypatch):
    from streaming.base.storage import download

    folder, open_it = copy

    class Shelf(download.LocalDownloader):
        """A remote of its own scheme whose objects are files."""

        @staticmethod
        def _client_identifier():
            return "shelf"

        def _download_file_impl(self, remote, local, timeout):
            shutil.copyfile(folder / remote.rpartition("/")[2], local)

    monkeypatch.setitem(download.DOWNLOADER_MAPPINGS, "shelf", Shelf)
    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=lambda _: None))
    remote = ShardedDataset("prose", StreamConfig(path="shelf://bucket/mds"), tmp_path / "far")
    assert all_tokens(remote) == all_tokens(open_it())
    next(folder.glob("*.zstd")).unlink()
    emptied = ShardedDataset("prose", StreamConfig(path="shelf://bucket/mds"), tmp_path / "anew")
    with pytest.raises(UserError, match=r"shard.*stream prose.*cannot be downloaded"):
        all_tokens(emptied)


def test_token_counts_leave_out_what_is_to_be_skipped(copy):
    folder, _ = copy
    index = json.loads((folder / "index.json").read_text())
    (folder / "token_counts.npy").unlink()
    first = folder / index["shards"][0]["zip_data"]["basename"]
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 0xFF
    first.write_bytes(content)

    def counts(on_damaged_shard):
        stream, settings = StreamConfig(path=str(folder)), DataConfig()
        settings.on_damaged_shard = on_damaged_shard
        return ShardedDataset(
            "prose", stream, folder.parent / on_damaged_shard, settings=settings
        ).token_counts(512)

    with pytest.raises(UserError, match="damaged"):
        counts("stop")
    assert (counts("skip").sum() > 0) == (len(index["shards"]) > 1)


def test_a_path_that_holds_no_data_set_is_told_with_what_may_be_meant(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_text("{}")
    (tmp_path / "prepared" / "web").mkdir(parents=True)

    def refused(path):
        with pytest.raises(UserError) as error:
            ShardedDataset("prose", StreamConfig(path=path), tmp_path / "cache")
        return str(error.value)

    assert refused("mdx").endswith(f"no such data folder in {tmp_path}")
    assert "is a file; `restomod prepare`" in refused("texts.jsonl")
    assert "`restomod prepare` or data_prep/write_mds.py makes one" in refused("prepared")
    copy[0].rename(tmp_path / "prepared" / "web" / "train")
    assert "name one of those inside it: prepared/web/train" in refused("prepared")
