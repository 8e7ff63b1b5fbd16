"""A checkpoint is whole or it is named with what is wrong with it."""

import json
import logging
import os
from pathlib import Path

import pytest

from restomod.train.checkpoints import manifest
from restomod.train.checkpoints.manifest import (
    FORMAT,
    LOADER,
    MANIFEST,
    METADATA,
    MODEL,
    checkpoint_folder,
    damages,
    describe_file,
    load_loader_state,
    local_steps,
    newest_checkpoint,
    newest_step,
    read_manifest,
    step_of,
    verify,
    write_durably,
)

ABC = {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}


def write(run: Path, step: int) -> Path:
    """Write a checkpoint of three small files."""
    folder = checkpoint_folder(run, step)
    (folder / "state").mkdir(parents=True)
    for name in (METADATA, "state/__0_0.distcp", MODEL):
        (folder / name).write_text("abc")
    files = {name: describe_file(folder / name) for name in (METADATA, "state/__0_0.distcp", MODEL)}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "files": files}))
    return folder


def changed(folder: Path, **values) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | values))


def test_a_folder_is_named_by_its_step_and_no_other_name_has_one(tmp_path):
    folder = checkpoint_folder(tmp_path, 1234)
    assert folder == tmp_path / "checkpoints" / "step-00001234"
    assert step_of(folder.name) == 1234
    assert step_of("step-123456789") == 123_456_789
    assert [step_of(name) for name in ("1234", "step-", "step-12.tmp", "laststep-1")] == [None] * 4


def test_steps_are_told_newest_first_and_the_newest_is_one_with_a_manifest(tmp_path):
    assert local_steps(tmp_path) == []
    assert newest_step(tmp_path) == 0
    for step in (5, 10, 100):
        write(tmp_path, step)
    (tmp_path / "checkpoints" / "notes").mkdir()
    (checkpoint_folder(tmp_path, 100) / MANIFEST).unlink()
    assert local_steps(tmp_path) == [100, 10, 5]
    assert newest_step(tmp_path) == 10


def test_the_newest_whole_checkpoint_is_used_and_those_before_it_are_named(tmp_path, caplog):
    assert newest_checkpoint(tmp_path) is None
    for step in (5, 10, 100):
        write(tmp_path, step)
    (checkpoint_folder(tmp_path, 100) / MANIFEST).unlink()
    (checkpoint_folder(tmp_path, 10) / MODEL).unlink()
    with caplog.at_level(logging.WARNING):
        folder, content = newest_checkpoint(tmp_path)
    assert folder == checkpoint_folder(tmp_path, 5)
    assert content["step"] == 5
    assert caplog.messages == [
        f"{checkpoint_folder(tmp_path, 100)} is not used: manifest.json is missing: it was never "
        "finished, or is being deleted",
        f"{checkpoint_folder(tmp_path, 10)} is not used: model.json is missing",
    ]


def test_a_whole_checkpoint_has_nothing_wrong_and_says_what_it_is(tmp_path):
    folder = write(tmp_path, 3)
    problem, content = verify(folder)
    assert problem == ""
    assert content["step"] == 3
    assert content["files"][MODEL] == ABC
    assert verify(folder, METADATA) == ("", content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / MODEL).write_text("ab"), "model.json is damaged: 2 bytes, 3 are recorded"),
        (
            lambda f: (f / METADATA).write_text("abd"),
            "state/.metadata is damaged: its sha256 is not as recorded",
        ),
        (lambda f: (f / "state/__0_0.distcp").unlink(), "state/__0_0.distcp is missing"),
        (
            lambda f: [(f / "state" / name).touch() for name in "ba"],
            "state/a is not in its manifest",
        ),
        (lambda f: changed(f, format=2), f"its format is 2, not {FORMAT}"),
        (lambda f: (f / MANIFEST).write_text("{"), "its manifest cannot be read: JSONDecodeError"),
        (lambda f: (f / MANIFEST).write_text("[]"), "its manifest cannot be read: TypeError"),
        (lambda f: changed(f, files=[]), "its manifest cannot be read: AttributeError"),
        (
            lambda f: (f / MANIFEST).write_text('{"format": 3}'),
            "its manifest cannot be read: KeyError",
        ),
        (lambda f: changed(f, files={MODEL: ABC}), "state/.metadata is not in its manifest"),
        (lambda f: changed(f, files={METADATA: ABC}), "model.json is not in its manifest"),
        (
            lambda f: changed(f, files={"/tmp/a": ABC}),
            "its manifest names /tmp/a, outside of its folder",
        ),
        (
            lambda f: changed(f, files={"state/../../a": ABC}),
            "its manifest names state/../../a, outside of its folder",
        ),
        (
            lambda f: changed(f, files={MODEL: ABC | {"bytes": "3"}}),
            "its manifest says nothing of model.json",
        ),
        (
            lambda f: changed(f, files={MODEL: ABC | {"sha256": None}}),
            "its manifest says nothing of model.json",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_and_nothing_of_the_manifest_is_believed(tmp_path, damage, problem):
    folder = write(tmp_path, 3)
    damage(folder)
    found, content = verify(folder)
    assert found.startswith(problem)
    assert content == {}


def test_one_file_can_be_looked_at_alone(tmp_path):
    folder = write(tmp_path, 3)
    (folder / MODEL).write_text("")
    (folder / "state/more").touch()
    assert verify(folder, METADATA)[0] == ""
    assert verify(folder, MODEL) == ("model.json is damaged: 0 bytes, 3 are recorded", {})
    assert verify(folder, LOADER) == ("loader.json is not in its manifest", {})


def test_what_cannot_be_read_is_told_and_not_taken_for_missing(tmp_path):
    folder = write(tmp_path, 3)
    (folder / MODEL).unlink()
    (folder / MODEL).symlink_to(MODEL)
    (problem,) = damages(folder, {MODEL: ABC}).values()
    assert problem.startswith("model.json cannot be read: [Errno")
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    problem, content = verify(folder)
    assert problem.startswith("manifest.json cannot be read: [Errno")
    assert content == {}


def test_each_file_is_told_of_by_its_name(tmp_path):
    folder = write(tmp_path, 3)
    (folder / MODEL).unlink()
    assert damages(folder, {METADATA: ABC, MODEL: ABC}) == {
        METADATA: "",
        MODEL: "model.json is missing",
    }
    assert damages(folder, {}) == {}


def test_a_manifest_that_is_whole_is_read_as_it_was_written(tmp_path):
    content = (write(tmp_path, 3) / MANIFEST).read_bytes()
    assert read_manifest(content) == ("", json.loads(content))


def test_a_file_is_replaced_only_when_its_new_text_is_on_disk(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    file.write_text("old")
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), file.read_text()))
        assert os.fstat(descriptor).st_size

    monkeypatch.setattr(manifest.os, "fsync", fsync)
    open_before = len(os.listdir("/proc/self/fd"))
    write_durably(file, "new")
    assert synced == [(f"{file}.tmp", "old"), (str(tmp_path), "new")]
    assert os.listdir(tmp_path) == ["a.json"]
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_the_loaders_state_comes_back(tmp_path):
    folder = write(tmp_path, 3)
    (folder / LOADER).write_text('{"lanes": {}}')
    assert load_loader_state(folder) == {"lanes": {}}
