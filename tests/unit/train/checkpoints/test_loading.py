"""Checkpoints are read without running what somebody may have put into them."""

import io
import json
import pickle
import re
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

import restomod
from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.tools.runs import load_model
from restomod.train.checkpoints.loading import StateReader, load_state
from restomod.train.checkpoints.manifest import FORMAT, MANIFEST, METADATA, describe_file
from restomod.train.checkpoints.saving import Snapshot, write_checkpoint

TINY = {"layers": 2, "hidden_size": 32, "heads": 2, "intermediate_size": 48, "vocab_size": 64}
TINY |= {"pad_id": 3, "cls_id": 1, "sep_id": 2}


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    parts = {"model": MaskedLM(EncoderConfig(**TINY)).state_dict(), "optimizer": {"lr": 0.5}}
    about = {"format": FORMAT, "step": 1, "slots": 1, "phase": "x", "evaluation": None}
    loader = {"rows": 0, "lanes": {}}
    snapshot = Snapshot(1, parts, loader, TINY, about, time.perf_counter())
    write_checkpoint(snapshot, tmp_path / "step-00000001", None)
    return tmp_path / "step-00000001"


def vouch(folder):
    """Make the manifest say that all files are as they should be."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {name: describe_file(folder / name) for name in manifest["files"]}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def index_of(folder):
    return pickle.loads((folder / METADATA).read_bytes())


def test_plain_values_and_tensors_come_back(checkpoint):
    parts = {"model": MaskedLM(EncoderConfig(**TINY)).state_dict(), "optimizer": {"lr": 0.0}}
    load_state(parts, StateReader(checkpoint))
    assert parts["optimizer"] == {"lr": 0.5}
    for name, weight in load_model(checkpoint).state_dict().items():
        assert torch.equal(weight, parts["model"][name])


def test_a_file_that_cannot_be_read_is_not_taken_for_one_that_lacks_something(checkpoint):
    parts = {"model": MaskedLM(EncoderConfig(**TINY)).state_dict(), "optimizer": {"lr": 0.0}}
    reader = StateReader(checkpoint)
    for file in (checkpoint / "state").glob("*.distcp"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="distcp"):
        load_state(parts, reader)


def test_an_index_that_was_changed_is_refused_before_it_is_unpickled(checkpoint, tmp_path):
    (checkpoint / METADATA).write_bytes(pickle.dumps(Payload(tmp_path / "touched")))
    with pytest.raises(UserError, match=r"state/.metadata is damaged"):
        load_model(checkpoint)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("place", ["whole", "planner_data"])
def test_an_index_that_would_run_code_is_refused_though_its_manifest_vouches_for_it(
    checkpoint, tmp_path, place
):
    payload = Payload(tmp_path / "touched")
    content = payload
    if place == "planner_data":
        content = index_of(checkpoint)
        content.planner_data = {"x": payload}
    (checkpoint / METADATA).write_bytes(pickle.dumps(content))
    vouch(checkpoint)
    with pytest.raises(UserError, match=r"is no index of a checkpoint: it names pathlib"):
        load_model(checkpoint)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["optimizer.lr", "model.encoder.final_norm.weight"])
def test_a_value_that_would_run_code_is_refused(checkpoint, tmp_path, name):
    """Also where a tensor is expected, which the index may declare to be something else."""
    index, data = index_of(checkpoint), io.BytesIO()
    torch.save(Payload(tmp_path / "touched"), data)
    entry = next(key for key in index.storage_data if key.fqn == name)
    info = index.storage_data.pop(entry)
    index.state_dict_metadata[name] = dcp.metadata.BytesStorageMetadata()
    info.offset, info.length, info.relative_path = 0, len(data.getvalue()), "__0_9.distcp"
    index.storage_data[dcp.metadata.MetadataIndex(name)] = info
    (checkpoint / "state" / "__0_9.distcp").write_bytes(data.getvalue())
    (checkpoint / METADATA).write_bytes(pickle.dumps(index))
    parts = {"model": MaskedLM(EncoderConfig(**TINY)).state_dict(), "optimizer": {"lr": 0.0}}
    with pytest.raises(UserError, match=f"{name}: holds more than a plain value"):
        load_state(parts, StateReader(checkpoint))
    assert not (tmp_path / "touched").exists()


def test_an_index_that_leads_out_of_its_folder_is_refused(checkpoint):
    index = index_of(checkpoint)
    next(iter(index.storage_data.values())).relative_path = "../../elsewhere"
    (checkpoint / METADATA).write_bytes(pickle.dumps(index))
    vouch(checkpoint)
    with pytest.raises(UserError, match=r"names ../../elsewhere, outside of its folder"):
        load_model(checkpoint)


def test_an_index_that_is_cut_short_is_refused(checkpoint):
    (checkpoint / METADATA).write_bytes((checkpoint / METADATA).read_bytes()[:-20])
    vouch(checkpoint)
    with pytest.raises(UserError, match="is no index of a checkpoint"):
        load_model(checkpoint)


def test_nothing_else_unpickles_files():
    source = Path(restomod.__file__).parent
    unsafe = r"pickle\.(load|Unpickler)|torch\.load|allow_pickle|dcp\.load|joblib|FileSystemReader"
    found = [p.name for p in source.rglob("*.py") if re.search(unsafe, p.read_text())]
    assert found == ["loading.py"]
