import errno
import shutil
import uuid
from pathlib import Path

import fsspec
import pytest

from restomod.errors import UserError
from restomod.prepare.config import Preparation
from restomod.prepare.job import Job
from restomod.prepare.publish import check_target, move_into_place, publish_tokenizer


@pytest.fixture
def job(tmp_path):
    job = Job(Preparation(), tmp_path / "work")
    for name in ("manifest.json", "tokenizer/tokenizer.json", "web/train/index.json"):
        path = job.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return job


@pytest.fixture
def remote():
    out = f"memory://{uuid.uuid4().hex}/out"
    system = fsspec.filesystem("memory")

    def names():
        inside = out.removeprefix("memory:/")
        return sorted(path.removeprefix(f"{inside}/") for path in system.find(inside))

    yield out, names
    system.rm(out.removesuffix("/out"), recursive=True)


WHOLE = ["manifest.json", "tokenizer/tokenizer.json", "web/train/index.json"]


def test_a_tokenizer_alone_in_an_object_store_gives_way_to_the_whole(job, remote):
    out, names = remote
    for _ in range(2):
        check_target(out)
        publish_tokenizer(job, {"size": 320}, out)
    assert names() == ["tokenizer/preparation.json", "tokenizer/tokenizer.json"]
    check_target(out)
    move_into_place(job, out)
    assert names() == WHOLE
    with pytest.raises(UserError, match="holds no finished preparation"):
        check_target(out)


def test_an_upload_that_broke_off_goes_on(job, remote, monkeypatch):
    out, names = remote
    move_into_place(job, out)
    put, sent = fsspec.filesystem("memory").put_file, []

    def fails_second(local, path, **options):
        sent.append(path)
        if len(sent) == 2:
            raise OSError("gone")
        put(local, path, **options)

    monkeypatch.setattr(fsspec.filesystem("memory"), "put_file", fails_second)
    with pytest.raises(UserError, match="run again to go on"):
        move_into_place(job, out)
    assert names() == ["preparation.json", "tokenizer/tokenizer.json"]
    check_target(out)
    move_into_place(job, out)
    assert names() == WHOLE


def test_a_copy_that_fails_leaves_the_output_before_it(job, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text("before")
    rename, copy = Path.rename, shutil.copytree

    def within_a_file_system(path, target):
        if path == job.output:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    def full(source, target):
        target.mkdir()
        (target / "half").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", within_a_file_system)
    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space left"):
        move_into_place(job, str(out))
    assert (out / "manifest.json").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "work"]
    monkeypatch.setattr(shutil, "copytree", copy)
    move_into_place(job, str(out))
    assert (out / "manifest.json").read_text() == "manifest.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "work"]
