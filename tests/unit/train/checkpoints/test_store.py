"""A run's place in a store: what goes up, what comes back, what a fault does."""

import json
from types import SimpleNamespace

import pytest

from restomod.config import CheckpointConfig
from restomod.errors import UserError
from restomod.train.checkpoints.manifest import (
    FORMAT,
    LOADER,
    METADATA,
    MODEL,
    checkpoint_folder,
    describe_file,
    verify,
)
from restomod.train.checkpoints.resume import find_checkpoint
from restomod.train.checkpoints.saving import prune
from restomod.train.checkpoints.store import ATTEMPTS, Store
from restomod.train.checkpoints.upload import LOG, Uploads, restore_log
from tests.s3 import BUCKET, s3, server  # noqa: F401

FILES = (LOADER, METADATA, MODEL, "state/__0_0.distcp")


def write_checkpoint(run_folder, step, content="x", loss=None):
    """Write what looks like a checkpoint; return the names of its files."""
    folder = checkpoint_folder(run_folder, step)
    (folder / "state").mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(f"{name} of {step} {content}" * 100)
    manifest = {
        "format": FORMAT,
        "step": step,
        "slots": step * 100,
        "phase": "pretrain",
        "evaluation": loss and {"step": step, "domains": {"all": {"loss": loss}}},
        "files": {name: describe_file(folder / name) for name in FILES},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return list(FILES)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("run_name: run\n")
    (folder / LOG).write_text('{"event": "start"}\n')
    return folder


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def make(run, tmp_path, pauses):
    """Return a store, and uploads to it, with pauses that only count."""

    def make(url="", **rules):
        store = Store(url or str(tmp_path / "store"), "run", pauses.append)
        return store, Uploads(store, run, CheckpointConfig(**rules), None)

    return make


@pytest.fixture
def bucket(s3):  # noqa: F811
    s3.client().create_bucket(Bucket=BUCKET)
    return s3


@pytest.fixture
def address(bucket, tmp_path):
    return f"s3://{BUCKET}/{tmp_path.name}"


def recipe_for(folder):
    return SimpleNamespace(run_folder=folder)


def test_a_checkpoint_comes_back_where_nothing_of_it_was(run, make, tmp_path):
    store, uploads = make()
    uploads.add(3, write_checkpoint(run, 3))
    uploads.finish()
    elsewhere = tmp_path / "elsewhere"
    folder, manifest = find_checkpoint(recipe_for(elsewhere), store, None)
    assert manifest["step"] == 3
    assert verify(folder)[0] == ""
    for name in FILES:
        assert (folder / name).read_bytes() == (checkpoint_folder(run, 3) / name).read_bytes()
    restore_log(store, elsewhere)
    assert (elsewhere / LOG).read_text() == '{"event": "start"}\n'
    assert store.text("config.yaml") == b"run_name: run\n"


def test_whole_local_checkpoint_that_is_as_new_is_not_downloaded(run, make, monkeypatch):
    store, uploads = make()
    uploads.add(3, write_checkpoint(run, 3))
    uploads.finish()
    monkeypatch.setattr(store, "fetch", None)
    assert find_checkpoint(recipe_for(run), store, None)[1]["step"] == 3


def test_what_is_damaged_here_is_replaced_and_the_rest_stays(run, make):
    store, uploads = make()
    uploads.add(3, write_checkpoint(run, 3))
    uploads.finish()
    folder = checkpoint_folder(run, 3)
    (folder / LOADER).write_text("damaged")
    (folder / "state" / "stranger").write_text("")
    kept = (folder / MODEL).stat().st_mtime_ns
    assert find_checkpoint(recipe_for(run), store, None)[1]["step"] == 3
    assert verify(folder)[0] == ""
    assert (folder / MODEL).stat().st_mtime_ns == kept


def test_damage_in_the_store_is_named_and_the_one_before_used(run, make, tmp_path, caplog):
    store, uploads = make()
    for step in (3, 4):
        uploads.add(step, write_checkpoint(run, step))
    uploads.finish()
    far = tmp_path / "store" / "run" / "checkpoints" / "step-00000004" / MODEL
    far.write_bytes(far.read_bytes()[::-1])
    elsewhere = tmp_path / "elsewhere"
    assert find_checkpoint(recipe_for(elsewhere), store, None)[1]["step"] == 3
    assert any(
        "step-00000004 is not used: model.json is damaged: its sha256" in record.getMessage()
        for record in caplog.records
    )
    assert not (checkpoint_folder(elsewhere, 4) / "manifest.json").exists()


def test_retention_holds_for_the_store_and_keep_local_for_the_disk(run, make):
    store, uploads = make(keep=2, keep_best=1, keep_local=1)
    for step, loss in enumerate((3.0, 1.0, 2.0, 2.0, 2.0), 1):
        uploads.add(step, write_checkpoint(run, step, loss=loss))
    uploads.wait()
    assert store.steps() == [5, 4, 2]
    prune(run, 5, uploads.local, None)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000005"]


def test_what_the_store_lacks_stays_on_disk_and_goes_up_with_the_next(
    run, make, tmp_path, caplog, pauses
):
    store, uploads = make(keep=3, keep_local=1)
    uploads.add(1, write_checkpoint(run, 1))
    uploads.wait()
    real, store.put = store.put, lambda *_: (_ for _ in ()).throw(OSError("no way there"))
    uploads.add(2, write_checkpoint(run, 2))
    uploads.wait()
    assert "step-00000002 is not in the store: no way there" in caplog.text
    with pytest.raises(UserError, match=r"no way there.*same command again"):
        uploads.finish()
    store.put = real
    uploads.add(3, write_checkpoint(run, 3))
    uploads.wait()
    assert store.steps() == [3, 2, 1]
    uploads.finish()


def test_checkpoint_of_an_earlier_process_goes_up(run, make):
    store, uploads = make()
    write_checkpoint(run, 3)
    _, manifest = verify(checkpoint_folder(run, 3))
    uploads.add_whole(3, manifest)
    uploads.finish()
    assert store.steps() == [3]
    uploads.add_whole(3, manifest)
    assert not uploads._jobs


def test_abandoned_end_of_a_run_does_not_push_out_what_counts(run, make):
    store, uploads = make(keep=1)
    uploads.add(9, write_checkpoint(run, 9))
    uploads.wait()
    uploads.add(4, write_checkpoint(run, 4))
    uploads.wait()
    assert store.steps() == [4]


def test_errors_of_the_store_are_tried_again(run, make, bucket, address, pauses):
    store, uploads = make(address)
    bucket.upload_faults["__0_0.distcp"] = ["500"] * 3
    uploads.add(3, write_checkpoint(run, 3))
    uploads.finish()
    assert store.steps() == [3]
    assert pauses == [1.0, 2.0, 4.0]


def test_upload_that_is_cut_short_is_noticed_and_repeated(
    run, make, bucket, address, pauses, tmp_path
):
    store, uploads = make(address)
    bucket.upload_faults[MODEL] = ["cut"]
    bucket.upload_faults["manifest.json"] = ["cut"]
    uploads.add(3, write_checkpoint(run, 3))
    uploads.finish()
    assert pauses == [1.0, 1.0]
    folder, _ = find_checkpoint(recipe_for(run.with_name("elsewhere")), store, None)
    assert verify(folder)[0] == ""


def test_manifest_goes_up_last(run, make, bucket, address):
    store, uploads = make(address)
    bucket.upload_faults["__0_0.distcp"] = ["500"] * ATTEMPTS
    uploads.add(3, write_checkpoint(run, 3))
    uploads.wait()
    assert store.steps() == []
    there = bucket.client().list_objects(Bucket=BUCKET, Prefix=f"{run.parents[1].name}/")
    names = [entry["Key"].rpartition("step-00000003/")[2] for entry in there["Contents"]]
    assert sorted(names) == [LOADER, MODEL, METADATA]
    with pytest.raises(UserError, match="Internal Server Error"):
        uploads.finish()


def test_download_that_fails_at_times_is_tried_again(run, make, bucket, address, tmp_path, pauses):
    store, uploads = make(address)
    uploads.add(3, write_checkpoint(run, 3))
    uploads.finish()
    bucket.faults[MODEL] = ["flip"]
    folder, _ = find_checkpoint(recipe_for(tmp_path / "elsewhere"), store, None)
    assert verify(folder)[0] == ""
    assert pauses == [1.0]


def test_store_that_cannot_be_reached_is_not_taken_for_an_empty_one(run, make, bucket, address):
    store, _ = make(address)
    write_checkpoint(run, 3)
    bucket.faults[BUCKET] = ["500"] * ATTEMPTS
    with pytest.raises(UserError, match=f"store: {address}/run cannot be reached"):
        find_checkpoint(recipe_for(run), store, None)


def test_store_is_tried_out_before_training(make, bucket, address):
    make(address)[0].check()
    assert (
        bucket.client()
        .list_objects(Bucket=BUCKET, Prefix=address[len("s3://bucket/") :])
        .get("Contents", [])
        == []
    )
    with pytest.raises(UserError, match="no-such-bucket/run cannot be written"):
        make("s3://no-such-bucket")[0].check()
    with pytest.raises(UserError, match="nothing://there cannot be opened"):
        Store("nothing://there", "run")
