"""The loader's faults: a failing, killed or orphaned worker, damaged and odd data."""

import json
import multiprocessing
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

from restomod.data import lanes
from restomod.data.files import DamagedShardError
from restomod.data.loader import Loader, explain
from restomod.data.sources import open_sources
from restomod.errors import UserError
from restomod.recipe import load_recipe

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def load(tiny, tmp_path):
    """Opens the tiny recipe on some data sets of one stream each."""

    def open_it(paths, *overrides, cache="cache"):
        path = tiny.write(
            tmp_path / "recipe.yaml",
            data__streams={name: {"path": str(path)} for name, path in paths.items()},
            phases__mixture=dict.fromkeys(paths, 1.0),
            evaluation__streams={},
            cache_dir=str(tmp_path / cache),
        )
        recipe = load_recipe([path], list(overrides))
        return recipe, open_sources(recipe)

    return open_it


def run(recipe, sources, steps, world_size=1, state=None):
    """Return the digests of some steps, the merged state after them and what was skipped."""
    loaders = [Loader(recipe, sources, rank, world_size, state) for rank in range(world_size)]
    batches = [iter(loader) for loader in loaders]
    digests, skipped = [], []
    for _ in range(steps):
        for batch in batches:
            next(batch)
        digests.append(sum(loader.facts.digest for loader in loaders) % 2**64)
        skipped += [entry for loader in loaders for entry in loader.skipped]
    parts = [loader.state_dict() for loader in loaders]
    states = {lane: s for part in parts for lane, s in part["lanes"].items()}
    return digests, json.loads(json.dumps({"rows": parts[0]["rows"], "lanes": states})), skipped


@pytest.fixture
def code(tiny):
    return {"code": tiny.folder / "mds" / "code"}


def test_users_mistake_in_a_worker_is_one_message(load, code, tmp_path):
    shutil.copytree(code["code"], tmp_path / "damaged")
    for shard in (tmp_path / "damaged").glob("*.zstd"):
        shard.write_bytes(b"rubbish")
    recipe, sources = load({"code": tmp_path / "damaged"}, "data.workers=2")
    with pytest.raises(DamagedShardError) as raised:
        run(recipe, sources, 1)
    assert "\n" not in str(raised.value)
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), RuntimeError("a model timed out")])
def test_bug_in_a_worker_keeps_its_traceback(load, code, monkeypatch, error):
    def broken(self):
        raise error

    recipe, sources = load(code, "data.workers=2")
    monkeypatch.setattr(lanes.Lane, "next_row", broken)
    with pytest.raises(type(error), match=rf"(?s)Traceback.*in broken.*{error}"):
        run(recipe, sources, 1)


def children(pid):
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_killed_worker_is_explained(load, code):
    recipe, sources = load(code, "data.workers=2")
    before = set(children(os.getpid()))
    batches = iter(Loader(recipe, sources))
    next(batches)
    worker = min(set(children(os.getpid())) - before)

    def until_it_fails():
        os.kill(worker, signal.SIGKILL)
        try:
            for _ in range(100_000):
                next(batches)
        except RuntimeError as error:
            explain(error)  # as training does: torch raises wherever the main process happens to be
            raise

    with pytest.raises(RuntimeError, match=r"(killed|exited).*short of memory.*fewer data.workers"):
        until_it_fails()


def test_workers_take_sigterm_from_their_main_process_alone(load, code):
    recipe, sources = load(code, "data.workers=2")
    before = set(children(os.getpid()))
    batches = iter(Loader(recipe, sources))
    next(batches)
    workers = [str(pid) for pid in set(children(os.getpid())) - before]
    subprocess.run(["kill", "-TERM", *workers], check=True)  # as torchrun does, to the whole group
    for _ in range(1000):  # more than was prepared ahead
        next(batches)
    ends = [os.pidfd_open(int(worker)) for worker in workers]
    for worker, end in zip(workers, ends, strict=True):
        os.kill(int(worker), signal.SIGTERM)
        assert select.select([end], [], [], 20)[0]
        os.close(end)


LEFT_ALONE = """
import os, resource, sys
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, most), most))
for _ in range(1100):  # as sockets to many ranks are
    os.open(os.devnull, os.O_RDONLY)
from restomod.data.loader import Loader
from restomod.data.sources import open_sources
from restomod.recipe import load_recipe
recipe = load_recipe([sys.argv[1]], ["data.workers=2"])
for _ in Loader(recipe, open_sources(recipe)):
    print("batch", flush=True)
"""


def test_killed_run_leaves_nothing_and_the_next_starts_at_once(load, code, tmp_path):
    recipe, sources = load(code, "data.workers=2", cache="shared")
    expected, _, _ = run(recipe, sources, 3)
    shared_memory = set(os.listdir("/dev/shm"))
    shutil.rmtree(tmp_path / "shared")
    process = subprocess.Popen(
        [sys.executable, "-c", LEFT_ALONE, str(tmp_path / "recipe.yaml")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"batch\n"
    workers = children(process.pid)
    assert len(workers) == 2
    ends = [os.pidfd_open(worker) for worker in workers]
    process.kill()
    process.wait()
    recipe, sources = load(code, "data.workers=2", cache="shared")
    assert run(recipe, sources, 3)[0] == expected
    for end in ends:
        assert select.select([end], [], [], 20)[0]
        os.close(end)
    process.stdout.close()
    left = {n for n in set(os.listdir("/dev/shm")) - shared_memory if not n.startswith("sem.")}
    assert not left


def test_two_runs_share_a_cache(load, code):
    expected, _, _ = run(*load(code, cache="alone"), 6)
    results = FORK.SimpleQueue()

    def one():
        results.put(run(*load(code, cache="shared"), 6)[0])

    processes = [FORK.Process(target=one) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [results.get(), results.get()] == [expected, expected]


def damage(folder, how):
    """Harm the data set's second shard in one of the ways that happen; return its file's name."""
    shard = sorted(folder.glob("shard.00001.mds*"))[0]
    if how == "missing":
        shard.unlink()
    elif how == "empty":
        shard.write_bytes(b"")
    elif how == "shorter":
        shard.write_bytes(shard.read_bytes()[:-5])
    else:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 4
        shard.write_bytes(content)
    return shard.name


@pytest.fixture
def raw(tmp_path):
    """An uncompressed data set of eight shards."""
    generator = np.random.default_rng(3)
    with MDSWriter(
        columns={"tokens": "ndarray:uint16"},
        out=str(tmp_path / "raw"),
        size_limit=2048,
        hashes=["sha1", "xxh64"],
    ) as writer:
        for _ in range(8 * 8):
            length = int(generator.integers(60, 140))
            writer.write({"tokens": generator.integers(5, 500, length, np.uint16)})
    return tmp_path / "raw"


@pytest.fixture(params=["raw", "zstd"])
def harmed(request, tiny, raw, tmp_path):
    """A copy of a data set, stored in either way."""
    if request.param == "raw":
        return raw
    return shutil.copytree(tiny.folder / "mds" / "code", tmp_path / "copy")


@pytest.mark.parametrize("how", ["missing", "empty", "shorter", "flipped"])
def test_damaged_shard_stops_or_is_skipped(how, harmed, load):
    file = damage(harmed, how)
    recipe, sources = load({"s": harmed}, "data.workers=0")
    with pytest.raises(DamagedShardError, match=r"shard\.00001\.mds.*\(stream s\): the shard is"):
        run(recipe, sources, 60)
    skip = ("data.on_damaged_shard=skip", "data.workers=0")
    digests, state, skipped = run(*load({"s": harmed}, *skip), 60)
    assert {entry["file"] for entry in skipped} == {file.removesuffix(".zstd")}
    assert {entry["stream"] for entry in skipped} == {"s"}
    kept = [entry for lane in state["lanes"].values() for entry in lane["skipped"]]
    assert len(kept) == len(skipped) == len({entry["lane"] for entry in skipped})
    lanes_ = state["lanes"].values()
    assert sum(lane["streams"]["s"]["damaged"] for lane in lanes_) >= 1
    for lane in lanes_:
        stream = lane["streams"]["s"]
        waiting = sum(chunk[5] for chunk in lane["waiting"]) + sum(lane["pending"][5:6])
        accounted = stream["delivered_tokens"] + waiting + stream["skipped_tokens"]
        assert accounted == stream["drawn_tokens"]
    assert run(*load({"s": harmed}, *skip), 60)[0] == digests


@pytest.mark.parametrize("world_size", [1, 2])
def test_run_that_skipped_goes_on_from_its_state(harmed, load, world_size):
    damage(harmed, "flipped")
    skip = ("data.on_damaged_shard=skip", "data.workers=0")
    expected, _, skipped = run(*load({"s": harmed}, *skip), 60)
    assert skipped
    first, state, before = run(*load({"s": harmed}, *skip), 25)
    assert before
    second, _, after = run(*load({"s": harmed}, *skip), 35, world_size, state)
    assert first + second == expected
    assert sorted(map(str, before + after)) == sorted(map(str, skipped))


@pytest.mark.parametrize("form", ["text", "bytes"])
def test_sample_of_a_damaged_data_set_is_read_around_the_damage(form, tmp_path, load):
    """What a data set holds is estimated from a sample when it is opened."""
    columns = {"text": "str"} if form == "text" else {"tokens": "bytes"}
    samples = ["prab prba " * 20, np.arange(5, 45, dtype=np.int64).tobytes()]
    name = next(iter(columns))
    with MDSWriter(columns=columns, out=str(tmp_path / "mds"), size_limit=2000) as writer:
        for _ in range(50):
            writer.write({name: samples[form == "bytes"]})
    damage(tmp_path / "mds", "empty")
    shutil.copy(tmp_path / "mds" / "shard.00001.mds", tmp_path / "mds" / "shard.00000.mds")
    with pytest.raises(UserError, match=r"shard\.00000\.mds \(stream s\): the shard is damaged"):
        load({"s": tmp_path / "mds"}, "data.workers=0")
    recipe, sources = load({"s": tmp_path / "mds"}, "data.workers=0", "data.on_damaged_shard=skip")
    assert run(recipe, sources, 5)[2]


def test_data_set_without_a_whole_shard_stops(raw, load):
    for shard in raw.glob("*.mds"):
        shard.write_bytes(b"")
    recipe, sources = load({"s": raw}, "data.workers=1", "data.on_damaged_shard=skip")
    with pytest.raises(UserError, match="hold no document of 1 tokens or more that can be read"):
        run(recipe, sources, 1)


def write_documents(folder, shards):
    """Write given documents (lists of ids) in given shards."""
    with MDSWriter(
        columns={"tokens": "ndarray:uint16"}, out=str(folder), size_limit=None
    ) as writer:
        for n, documents in enumerate(shards):
            if n:
                writer.flush_shard()
                writer._reset_cache()
            for ids in documents:
                writer.write({"tokens": np.array(ids, np.uint16)})
    return folder


def test_one_document_for_many_lanes(tmp_path, load):
    folder = write_documents(tmp_path / "mds", [[range(5, 505)]])
    recipe, sources = load({"s": folder}, "data.workers=2", "data.lanes=8", "phases.0.batch_rows=8")
    digests, state, _ = run(recipe, sources, 2)
    again, _, _ = run(recipe, sources, 2, state=state)
    whole, _, _ = run(recipe, sources, 4)
    assert len(set(whole)) == 4
    assert digests + again == whole


def test_empty_shards_one_document_shards_and_one_longer_than_a_row(tmp_path, load):
    documents = [[], [range(5, 15)], [], [[7] * 5000], [range(20, 60), [9]], []]
    folder = write_documents(tmp_path / "mds", documents)
    index = json.loads((folder / "index.json").read_text())
    assert 0 in [shard["samples"] for shard in index["shards"]]
    recipe, sources = load({"s": folder}, "data.workers=0")
    digests, _, _ = run(recipe, sources, 12)
    assert len(set(digests)) == 12
    assert run(recipe, sources, 12, 2)[0] == digests


def test_names_with_spaces_and_of_other_alphabets(tmp_path, load, raw):
    odd = tmp_path / "meine Daten" / "数据 ü"
    shutil.copytree(raw, odd)
    shard = odd / "shard.00000.mds"
    shard.rename(odd / "Stück ☃ 0.mds")
    index = json.loads((odd / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = "Stück ☃ 0.mds"
    (odd / "index.json").write_text(json.dumps(index))
    digests, _, _ = run(*load({"s": odd}, "data.workers=1", cache="Zwischen speicher"), 6)
    assert digests == run(*load({"s": raw}, "data.workers=1"), 6)[0]


def test_data_on_a_disk_that_cannot_be_written(tmp_path, load, raw, tiny):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a file system for reading only")
    mounted = tmp_path / "mounted"
    for source in (raw, tiny.folder / "mds" / "code"):
        mounted.mkdir(exist_ok=True)
        if subprocess.run(["mount", "--bind", source, mounted]).returncode:
            pytest.skip("may not mount a file system here")
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", mounted], check=True)
            digests, _, _ = run(*load({"s": mounted}, "data.workers=0"), 6)
        finally:
            subprocess.run(["umount", "--lazy", mounted], check=True)
        assert digests == run(*load({"s": source}, "data.workers=0"), 6)[0]
