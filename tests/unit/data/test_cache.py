import errno
import multiprocessing
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from restomod.config import DataConfig, StreamConfig
from restomod.data import cache as cache_module
from restomod.data.cache import Cache
from restomod.data.files import ShardFiles
from restomod.data.shards import ShardedDataset
from restomod.data.sources import open_sources
from restomod.errors import UserError
from restomod.recipe import load_recipe
from restomod.tools.plan.plan import plan

FOLDER = "0123456789abcdef"
FORK = multiprocessing.get_context("fork")


def make(cache, name, size):
    with cache.making(cache.root / FOLDER / name, size) as file:
        file.write(bytes(size))


def heard(pipe):
    """Return what another process says, which may have failed before it spoke."""
    assert pipe.poll(30)
    return pipe.recv()


def read_everything(dataset):
    for shard in range(len(dataset.shard_documents)):
        dataset.tokens(shard, 0)


def age(path, seconds):
    status = path.stat()
    os.utime(path, (status.st_atime - seconds, status.st_mtime - seconds))


def names(cache):
    return sorted(path.name for path in cache.root.rglob("*") if path.is_file())


def shards(cache):
    return [name for name in names(cache) if name.endswith(".mds")]


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "shards", 1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of 20 compressed shards of some 4 KB."""
    from streaming import MDSWriter

    folder = tmp_path_factory.mktemp("data") / "mds"
    generator = np.random.default_rng(5)
    columns = {"tokens": "ndarray:uint16"}
    with MDSWriter(
        columns=columns, out=str(folder), compression="zstd", size_limit=4096, hashes=["xxh64"]
    ) as writer:
        for _ in range(20 * 9):
            writer.write({"tokens": generator.integers(5, 500, 200, np.uint16)})
    return folder


@pytest.fixture
def data(folder):
    """Opens the data set, to be read through a cache of some size."""

    def open_it(root, limit_bytes=10**9, shards_open=512):
        settings = DataConfig(cache_limit_gb=limit_bytes / 1e9, shards_open_per_rank=shards_open)
        return ShardedDataset(
            "made up", StreamConfig(path=str(folder), local=str(root)), "", None, settings
        )

    return open_it


def test_least_recently_used_goes_first(cache):
    for name, seconds in (("a.mds", 30), ("b.mds", 20), ("c.mds", 10)):
        make(cache, name, 300)
        age(cache.root / FOLDER / name, seconds)
    os.utime(cache.root / FOLDER / "a.mds")
    make(cache, "d.mds", 300)
    assert shards(cache) == ["a.mds", "c.mds", "d.mds"]


def test_reading_keeps_within_the_limit_and_gives_the_same_documents(data, tmp_path):
    everything = data(tmp_path / "all")
    largest = int(everything.index.raw_bytes.max())
    bounded = data(tmp_path / "bounded", 3 * largest, shards_open=2)
    assert everything.index.raw_bytes.sum() > 6 * largest
    for _ in range(2):
        for shard in range(len(everything.shard_documents)):
            assert np.array_equal(bounded.tokens(shard, 0), everything.tokens(shard, 0))
            files = (tmp_path / "bounded").rglob("*.mds*")
            assert sum(file.stat().st_size for file in files) <= 3 * largest


def test_use_in_the_cache_counts_as_use(data, tmp_path):
    dataset = data(tmp_path / "shards", shards_open=1)
    for shard in range(3):
        dataset.tokens(shard, 0)
    files = {dataset.index.raw[shard].file for shard in range(3)}
    for path in (tmp_path / "shards").rglob("*.mds"):
        age(path, 3600)
    dataset.tokens(0, 0)
    newest = max((tmp_path / "shards").rglob("*.mds"), key=lambda path: path.stat().st_mtime)
    assert newest.name == dataset.index.raw[0].file
    assert files == set(shards(dataset.cache))


def test_open_shards_are_never_evicted(data, tmp_path):
    sizes = data(tmp_path / "all").index.raw_bytes
    dataset = data(tmp_path / "shards", int(sizes[:2].sum()), shards_open=3)
    first = dataset.tokens(0, 0)
    dataset.tokens(1, 0)
    with pytest.raises(UserError, match=r"all shards in the cache are in use.*cache_limit_gb"):
        dataset.tokens(2, 0)
    assert shards(dataset.cache) == [dataset.index.raw[n].file for n in (0, 1)]
    assert np.array_equal(first, data(tmp_path / "all").tokens(0, 0))


def test_data_set_keeps_no_more_open_than_its_lanes_need(data, tmp_path):
    """Else shards that are done with would fill the cache, locked."""
    sizes = data(tmp_path / "all").index.raw_bytes
    dataset = data(tmp_path / "shards", 3 * int(sizes.max()))
    dataset.shards_open = 2
    for shard in range(8):
        dataset.tokens(shard, 0)


def test_an_open_shard_takes_one_descriptor(data, tmp_path):
    """As `restomod doctor` counts them against the limit of a process."""
    dataset = data(tmp_path / "shards")

    def held():
        files = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
        return sum(file.startswith(str(tmp_path)) and file.endswith(".mds") for file in files)

    for shard in range(8):
        dataset.tokens(shard, 0)
        assert held() == shard + 1


def test_what_another_process_reads_is_not_evicted(cache):
    make(cache, "a.mds", 600)
    ours, theirs = FORK.Pipe()

    def read():
        with (cache.root / FOLDER / "a.mds").open("rb") as file:
            cache_module.lock_shared(file.fileno())
            theirs.send("open")
            theirs.recv()

    process = FORK.Process(target=read)
    process.start()
    assert heard(ours) == "open"
    with pytest.raises(UserError, match="in use"):
        make(cache, "b.mds", 600)
    ours.send("enough")
    process.join()
    make(cache, "b.mds", 600)
    assert shards(cache) == ["b.mds"]


def test_space_is_taken_before_it_is_written(cache):
    """Two processes that make shards at once do not exceed the limit together."""
    with cache.making(cache.root / FOLDER / "a.mds", 600), pytest.raises(UserError, match="in use"):
        make(cache, "b.mds", 600)
    assert shards(cache) == ["a.mds"]


def test_two_processes_make_a_shard_once(data, tmp_path, monkeypatch):
    made = FORK.Value("i", 0)
    expected = data(tmp_path / "alone")
    whole = ShardFiles._make

    def counted(self, shard, path):
        with made.get_lock():
            made.value += 1
        whole(self, shard, path)

    monkeypatch.setattr(ShardFiles, "_make", counted)
    tokens = [expected.tokens(shard, 0).tolist() for shard in range(10)]
    made.value = 0

    def read():
        dataset = data(tmp_path / "shared")
        assert [dataset.tokens(shard, 0).tolist() for shard in range(10)] == tokens

    processes = [FORK.Process(target=read) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert made.value == 10


def killed_while_making(cache, size):
    """Leave what a process leaves that is killed in the middle of making a shard."""
    ours, theirs = FORK.Pipe()

    def write():
        with cache.making(cache.root / FOLDER / "a.mds", size) as file:
            file.write(bytes(size // 2))
            file.flush()
            theirs.send("half")
            signal.pause()

    process = FORK.Process(target=write)
    process.start()
    assert heard(ours) == "half"
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_leftovers_of_a_killed_process_are_removed(cache):
    killed_while_making(cache, 600)
    assert len([name for name in names(cache) if name.endswith(".partial")]) == 1
    make(cache, "a.mds", 300)
    assert len([name for name in names(cache) if name.endswith(".partial")]) == 1
    make(cache, "b.mds", 600)  # needs the leftover's room, which goes before what is whole
    assert shards(cache) == ["a.mds", "b.mds"]
    assert not [name for name in names(cache) if name.endswith(".partial")]


def test_next_start_removes_leftovers_but_not_what_is_being_made(data, cache):
    killed_while_making(cache, 600)
    with cache.making(cache.root / FOLDER / "b.mds", 100) as file:
        data(cache.root)
        file.write(b"x" * 100)
    assert shards(cache) == ["b.mds"]
    assert not [name for name in names(cache) if name.endswith(".partial")]


def test_killed_download_is_removed_when_it_is_old(data, cache):
    downloads = cache.root / cache_module.DOWNLOADS
    downloads.mkdir(parents=True)
    for name in ("old.partial.aB3x", "going on.partial"):
        (downloads / name).write_bytes(b"half")
    age(downloads / "old.partial.aB3x", cache_module.LEFTOVER_S + 1)
    data(cache.root)
    assert [path.name for path in downloads.iterdir()] == ["going on.partial"]


def test_other_files_of_the_folder_are_left_alone(tmp_path):
    """`local` may be any folder of the user's."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x" * 2000)
    (tmp_path / "notes.partial").write_text("x" * 2000)
    cache = Cache(tmp_path, 1000)
    make(cache, "a.mds", 900)
    cache.remove_leftovers()
    make(cache, "b.mds", 900)
    assert shards(cache) == ["b.mds"]
    assert (tmp_path / "thesis" / "chapter.tex").exists()
    assert (tmp_path / "notes.partial").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder])
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk_is_one_message_and_leaves_nothing(small_disk, data):
    (small_disk / "other").write_bytes(bytes(56 << 10))
    dataset = data(small_disk / "shards")
    with pytest.raises(UserError, match=r"disk is full.*free some space.*move cache_dir") as raised:
        read_everything(dataset)
    assert str(small_disk / "shards") in str(raised.value)
    assert not [name for name in names(dataset.cache) if name.endswith(".partial")]
    (small_disk / "other").unlink()
    assert len(dataset.tokens(len(dataset.shard_documents) - 1, 0))


def test_full_disk_is_no_damaged_shard(data, tmp_path, monkeypatch):
    """With on_damaged_shard: skip, all data would be left out."""
    dataset = data(tmp_path / "shards")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="the disk is full") as raised:
        dataset.tokens(0, 0)
    assert type(raised.value) is UserError
    assert names(dataset.cache) == [n for n in names(dataset.cache) if n.isdigit() or n == "room"]


@pytest.mark.parametrize("blocked", ["shards", "shards/locks"])
def test_cache_that_cannot_be_written_is_named(data, tmp_path, blocked):
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file, no folder")
    with pytest.raises(UserError, match=r"shards: .*cannot be written.*move cache_dir"):
        data(tmp_path / "shards").tokens(0, 0)


def test_limit_below_the_working_set_is_refused(tiny, tmp_path):
    recipe = load_recipe(
        [tiny.write(tmp_path / "recipe.yaml", data__cache_limit_gb=1e-5, cache_dir=str(tmp_path))]
    )
    for check in (lambda: open_sources(recipe), lambda: plan(recipe, 1)):
        with pytest.raises(UserError, match=r"data\.cache_limit_gb: 1e-05 GB do not hold"):
            check()


def test_limit_just_at_the_working_set_is_enough(tiny, tmp_path):
    """What is admitted does not stop later for want of room."""
    from restomod.data.loader import Loader
    from restomod.data.working_set import working_set

    changes = {"data__shuffle_shards": 1, "data__lanes": 2, "data__shuffle_block_documents": 4}
    path = tiny.write(tmp_path / "recipe.yaml", cache_dir=str(tmp_path / "cache"), **changes)
    recipe = load_recipe([path])
    needed = working_set(recipe, open_sources(recipe).streams, 1).cached_bytes
    for workers in (0, 2):
        recipe = load_recipe(
            [path], [f"data.cache_limit_gb={needed / 1e9}", f"data.workers={workers}"]
        )
        loader = Loader(recipe, open_sources(recipe))
        for _ in zip(range(30), loader, strict=False):
            pass
        files = Path(recipe.cache_dir).rglob("*.mds*")
        assert sum(file.stat().st_size for file in files) <= needed
