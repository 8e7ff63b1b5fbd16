"""Data sets on S3, over HTTP, with a server that fails."""

import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from streaming import MDSWriter

from restomod.config import DataConfig, StreamConfig
from restomod.data import files
from restomod.data.files import DamagedShardError
from restomod.data.shards import ShardedDataset
from restomod.errors import UserError
from restomod.tools.folder import describe_folder
from tests.s3 import s3, server  # noqa: F401


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Pauses between tries, which are noted instead of made."""
    found = []
    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=found.append))
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write(tmp_path_factory.mktemp(name), name) for name in ("raw", "zstd")}


@pytest.fixture
def folder(request, folders):
    """The compressed data set, or the one that a test asks for."""
    return folders[getattr(request, "param", "zstd")]


def write(folder, name):
    generator = np.random.default_rng(5)
    with MDSWriter(
        columns={"tokens": "ndarray:uint16"},
        out=str(folder),
        compression=None if name == "raw" else name,
        size_limit=4096,
        hashes=["xxh64"],
    ) as writer:
        for _ in range(6 * 9):
            writer.write({"tokens": generator.integers(5, 500, 200, np.uint16)})
    return folder


@pytest.fixture
def remote(s3, folder, tmp_path):  # noqa: F811
    """Opens the data set on the server; names the stored file of a shard."""
    address = s3.upload(folder, folder.name)

    def open_it(attempts=3, timeout_s=20.0, cache="cache"):
        settings = DataConfig(download_attempts=attempts, download_timeout_s=timeout_s)
        return ShardedDataset("far", StreamConfig(path=address), tmp_path / cache, None, settings)

    return open_it


def stored(dataset, shard):
    return (dataset.index.packed or dataset.index.raw)[shard].file


def all_tokens(dataset):
    return [
        dataset.tokens(shard, n).tolist()
        for shard, count in enumerate(dataset.shard_documents)
        for n in range(count)
    ]


@pytest.mark.parametrize("folder", ["raw", "zstd"], indirect=True)
def test_remote_data_equals_local_data(remote, folder, tmp_path):
    local = ShardedDataset("near", StreamConfig(path=str(folder)), tmp_path / "near")
    assert all_tokens(remote()) == all_tokens(local)
    assert not list((tmp_path / "cache").rglob("*.partial*"))
    assert "documents: 54" in describe_folder(f"s3://bucket/{folder.name}", "", False)


def test_errors_are_tried_again_with_growing_pauses(remote, s3, pauses, caplog):  # noqa: F811
    dataset = remote()
    s3.faults[stored(dataset, 1)] = ["500", "500"]
    with caplog.at_level(logging.WARNING):
        assert len(dataset.tokens(1, 0)) == 200
    assert pauses == [1, 2]
    assert "trying again in 1 s (1 of 3)" in caplog.text


@pytest.mark.parametrize("folder", ["raw", "zstd"], indirect=True)
@pytest.mark.parametrize("fault", ["cut", "flip"])
def test_damaged_download_is_healed_by_the_next(remote, s3, folder, fault):  # noqa: F811
    dataset = remote()
    s3.faults[stored(dataset, 1)] = [fault]
    assert len(dataset.tokens(1, 0)) == 200
    assert s3.requests == [f"{fault} {stored(dataset, 1)}"]


def test_silent_remote_counts_as_failed(remote, s3, pauses):  # noqa: F811
    dataset = remote(timeout_s=0.2)
    s3.faults[stored(dataset, 1)] = ["silent"]
    assert len(dataset.tokens(1, 0)) == 200
    assert pauses == [1]


def test_unreachable_remote_stops_with_one_message(remote, s3, tmp_path):  # noqa: F811
    """It is no damage, for which shards may be left out."""
    dataset = remote()
    s3.faults[stored(dataset, 2)] = ["500"] * 99
    with pytest.raises(UserError, match=r"shard\.0000.*stream far.*in 3 attempts") as raised:
        dataset.tokens(2, 0)
    assert not isinstance(raised.value, DamagedShardError)
    s3.faults.clear()
    assert len(dataset.tokens(2, 0)) == 200  # nothing of the failure stays
    assert not list((tmp_path / "cache").rglob("*.partial*"))


def test_shard_that_stays_damaged_is_named(remote, s3):  # noqa: F811
    dataset = remote()
    s3.faults[stored(dataset, 2)] = ["flip"] * 99
    with pytest.raises(DamagedShardError, match=r"shard\.0000.*stream far.*in 3 attempts"):
        dataset.tokens(2, 0)


@pytest.mark.parametrize("how", ["missing", "empty", "damaged"])
def test_shard_that_was_stored_wrong_is_named(s3, folder, tmp_path, how):  # noqa: F811
    shutil.copytree(folder, tmp_path / "bad")
    shard = sorted((tmp_path / "bad").glob("shard.00002*"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if how == "damaged" else b"")
    if how == "missing":
        shard.unlink()
    address = s3.upload(tmp_path / "bad", "bad")
    dataset = ShardedDataset(
        "far", StreamConfig(path=address), tmp_path / "cache", None, DataConfig(download_attempts=2)
    )
    with pytest.raises(DamagedShardError, match=rf"{shard.name} \(stream far\): cannot be down"):
        dataset.tokens(2, 0)


def test_damaged_copy_in_the_cache_is_fetched_again(remote, tmp_path):
    expected = all_tokens(remote())
    for copy in (tmp_path / "cache").rglob("*.mds"):
        content = bytearray(copy.read_bytes())
        content[len(content) // 2] ^= 1
        copy.write_bytes(content)
    assert all_tokens(remote()) == expected


def test_missing_index_and_wrong_bucket_are_named(remote, s3, tmp_path):  # noqa: F811
    for address in ("s3://bucket/nothing", "s3://nothing/mds"):
        with pytest.raises(UserError, match=rf"{address}/index.json.*cannot be downloaded"):
            ShardedDataset(
                "far", StreamConfig(path=address), tmp_path, None, DataConfig(download_attempts=1)
            )
