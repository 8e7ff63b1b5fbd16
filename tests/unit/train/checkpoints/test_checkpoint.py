"""A checkpoint holds what training had when it was asked for, whatever happens meanwhile."""

import json
import os
import pickle
import re
import resource
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composer.core import Timestamp

from restomod import load_model
from restomod.config import CheckpointConfig, PhaseConfig, Recipe
from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.optim.stable_adamw import StableAdamW
from restomod.timeline import Timeline
from restomod.train.checkpoints import checkpoint, saving
from restomod.train.checkpoints.checkpoint import Checkpointing
from restomod.train.checkpoints.manifest import (
    FORMAT,
    METADATA,
    hash_file,
    newest_checkpoint,
    verify,
)
from restomod.train.checkpoints.resume import find_checkpoint
from restomod.train.checkpoints.saving import disk_errors
from restomod.train.clock import RunClock
from restomod.train.metrics import MetricsLog
from restomod.train.module import TrainedModel
from restomod.train.start import Start

TINY = EncoderConfig(
    layers=2, hidden_size=32, heads=2, intermediate_size=48, vocab_size=64, local_window=16
)


class Run:
    """A model in training, without data: `train` makes a step, as far as a checkpoint can see."""

    def __init__(self, folder: Path, resumed=None, **rules) -> None:
        torch.manual_seed(0)
        self.recipe = Recipe(
            run_name="run", runs_dir=str(folder), checkpoint=CheckpointConfig(**rules)
        )
        self.folder = self.recipe.run_folder
        self.folder.mkdir(exist_ok=True)
        self.model = MaskedLM(TINY)
        self.optimizer = StableAdamW(self.model.parameters(), lr=1e-3, lr_max=1e-3)
        self.lanes = {}
        self.timestamp = Timestamp()
        self.state = SimpleNamespace(
            model=TrainedModel(self.model),
            optimizers=[self.optimizer],
            timestamp=self.timestamp,
        )
        clock = RunClock()
        timeline = Timeline([PhaseConfig(slots="1M", row_tokens=512, batch_rows=1)])
        self.checkpoints = Checkpointing(
            self.recipe,
            SimpleNamespace(state_dict=lambda: {"rows": 1, "lanes": dict(self.lanes)}),
            {"tokenizer": "abc"},
            clock,
            MetricsLog(self.folder / "metrics.jsonl", clock),
            Start(timeline, *(resumed or ()), resumes=resumed is not None),
            lambda: {"evaluation": None},
        )
        self.checkpoints.fit_start(self.state, None)

    @property
    def step(self) -> int:
        return self.state.timestamp.batch.value

    def train(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1 * (self.step + 1))
        self.optimizer.param_groups[0]["lr"] = 1e-3 / (self.step + 1)
        self.optimizer.step()
        self.lanes[0] = {"row": self.step}
        self.state.timestamp = self.state.timestamp.to_next_batch(tokens=512)

    def batch(self) -> None:
        self.train()
        self.checkpoints.batch_end(self.state, None)

    def everything(self):
        return {
            "weights": {name: x.clone() for name, x in self.model.state_dict().items()},
            "moments": [
                {key: torch.as_tensor(x).clone() for key, x in self.optimizer.state[p].items()}
                for p in self.model.parameters()
            ],
            "lr": self.optimizer.param_groups[0]["lr"],
        }


def assert_equal(one, other):
    assert one["lr"] == other["lr"]
    for name, weight in one["weights"].items():
        assert torch.equal(weight, other["weights"][name]), name
    for ours, theirs in zip(one["moments"], other["moments"], strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def gate(monkeypatch):
    """An event that the disk waits for."""
    opened = threading.Event()
    real = saving._Writer.write_data

    def write_data(self, *arguments):
        assert opened.wait(60)
        return real(self, *arguments)

    monkeypatch.setattr(saving._Writer, "write_data", write_data)
    yield opened
    opened.set()


def test_training_goes_on_while_the_disk_is_slow(tmp_path, gate):
    run = Run(tmp_path, every_steps=2)
    run.batch()
    run.batch()
    then, lanes = run.everything(), dict(run.lanes)
    run.batch()
    run.train()  # both of these while the disk writes
    manifest = run.folder / "checkpoints" / "step-00000002" / "manifest.json"
    assert not manifest.exists()
    assert run.checkpoints.last_saved_step == -1
    assert not torch.equal(then["weights"]["head.bias"], run.model.state_dict()["head.bias"])
    gate.set()
    run.checkpoints.wait()
    assert run.checkpoints.last_saved_step == 2

    resumed = Run(tmp_path, newest_checkpoint(run.folder))
    assert resumed.step == 2
    assert_equal(resumed.everything(), then)
    loader = json.loads((manifest.parent / "loader.json").read_text())
    assert loader == {"rows": 1, "lanes": {"0": lanes[0]}}
    (event,) = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    assert (event["event"], event["step"]) == ("checkpoint", 2)
    assert 0 < event["stall_s"] < event["seconds"]
    assert (
        event["bytes"]
        == sum(path.stat().st_size for path in manifest.parent.rglob("*") if path.is_file())
        - manifest.stat().st_size
    )


def test_later_saves_hold_later_values_and_a_step_is_saved_once(tmp_path):
    run = Run(tmp_path, every_steps=1)
    for _ in range(3):
        run.batch()
    run.checkpoints.save(run.state, 3, wait=True)
    run.checkpoints.save(run.state, 3, wait=True)
    then = run.everything()
    assert run.checkpoints.last_saved_step == 3
    events = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events] == [1, 2, 3]
    assert_equal(Run(tmp_path, newest_checkpoint(run.folder)).everything(), then)


def test_old_checkpoints_go_and_so_does_what_a_kill_left(tmp_path):
    run = Run(tmp_path, every_steps=1, keep=2, keep_every="1024")
    left = run.folder / "checkpoints" / "step-00000001"
    (left / "state").mkdir(parents=True)
    run.train()
    for _ in range(6):
        run.batch()
    run.checkpoints.wait()
    names = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert names == [f"step-0000000{n}" for n in (2, 4, 6, 7)]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("a\nMissing key in checkpoint state_dict: x."), UserError),
        (RuntimeError("Connection closed by peer"), RuntimeError),
    ],
)
def test_a_rank_that_is_lost_while_a_changed_recipe_loads_is_no_mistake_of_the_users(
    tmp_path, monkeypatch, error, told
):
    run = Run(tmp_path, every_steps=1)
    run.batch()
    run.checkpoints.wait()

    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoint, "load_state", fail)
    run.checkpoints._start.changed = ["optimizer.lr"]
    with pytest.raises(told) as raised:
        run.checkpoints._load(run.state, *newest_checkpoint(run.folder))
    assert ("differs in optimizer.lr: Missing key" in str(raised.value)) == (told is UserError)


def save_again(run):
    run.batch()
    run.checkpoints.wait()


def test_a_folder_that_refuses_is_not_said_to_be_full():
    with pytest.raises(UserError) as refused, disk_errors(Path("/proc/a"), "Nothing is written"):
        Path("/proc/a").mkdir()
    assert str(refused.value).startswith("/proc/a: cannot be written: No such file")
    assert "Nothing is written: get the right to write there" in str(refused.value)
    assert "free" not in str(refused.value)


def test_full_disk_stops_training_and_leaves_what_was_there(tmp_path):
    run = Run(tmp_path, every_steps=1)
    run.batch()
    run.checkpoints.wait()
    then = run.everything()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        run.batch()
        with pytest.raises(UserError, match=r"step-00000002.*disk is full.*bytes are free"):
            run.checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (run.folder / "checkpoints" / "step-00000002").exists()
    assert_equal(Run(tmp_path, newest_checkpoint(run.folder)).everything(), then)


def test_error_in_the_background_is_raised_at_the_end_of_a_batch(tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(saving, "_own_files", broken)
    run = Run(tmp_path, every_steps=100)
    run.batch()
    run.checkpoints.save(run.state, 1)
    run.checkpoints._background.shutdown()
    with pytest.raises(ValueError, match="a bug"):
        run.batch()


def two_checkpoints(folder):
    run = Run(folder, every_steps=1)
    run.batch()
    run.batch()
    run.checkpoints.wait()
    return run, run.folder / "checkpoints" / "step-00000002"


def truncate(folder):
    (file,) = (folder / "state").glob("*.distcp")
    os.truncate(file, file.stat().st_size // 2)


def flip(folder):
    (file,) = (folder / "state").glob("*.distcp")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_shard(folder):
    next((folder / "state").glob("*.distcp")).unlink()


def lose_manifest(folder):
    (folder / "manifest.json").unlink()


def cut_manifest(folder):
    os.truncate(folder / "manifest.json", 100)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "__0_0.distcp is damaged: .* bytes"),
        (flip, "__0_0.distcp is damaged: its sha256"),
        (lose_shard, "__0_0.distcp is missing"),
        (lose_manifest, "manifest.json is missing"),
        (cut_manifest, "manifest cannot be read"),
    ],
)
def test_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path, caplog, damage, said
):
    run, newest = two_checkpoints(tmp_path)
    damage(newest)
    folder, manifest = find_checkpoint(run.recipe, None, None)
    assert manifest["step"] == 1
    assert folder.name == "step-00000001"
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert re.search(f"^{newest} is not used: .*{said}", warning)


def test_checkpoint_that_was_passed_over_does_not_count_as_a_kept_one(tmp_path):
    run, newest = two_checkpoints(tmp_path)
    truncate(newest)
    found = find_checkpoint(run.recipe, None, None)
    assert not (newest / "manifest.json").exists()
    resumed = Run(tmp_path, found, every_steps=3, keep=2)
    resumed.train()
    resumed.batch()
    resumed.checkpoints.wait()
    names = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert names == ["step-00000001", "step-00000003"]


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("covered", ["not in the manifest", "other hash", "other format"])
def test_nothing_is_unpickled_that_the_manifest_does_not_cover(tmp_path, covered):
    run, newest = two_checkpoints(tmp_path)
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / METADATA).write_bytes(pickle.dumps(Malicious(tmp_path / "harmed")))
    if covered == "not in the manifest":
        del manifest["files"][METADATA]
    elif covered == "other format":
        manifest["format"] = FORMAT - 1
        manifest["files"][METADATA]["sha256"] = hash_file(newest / METADATA)
    (newest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="cannot be used"):
        load_model(newest)
    load_model(run.folder)
    assert find_checkpoint(run.recipe, None, None)[1]["step"] == 1
    assert not (tmp_path / "harmed").exists()


def test_file_beside_those_of_the_manifest_is_refused(tmp_path):
    _, newest = two_checkpoints(tmp_path)
    (newest / "state" / "__7_0.distcp").write_bytes(b"")
    assert verify(newest)[0] == "state/__7_0.distcp is not in its manifest"


def test_manifest_may_not_name_files_elsewhere(tmp_path):
    _, newest = two_checkpoints(tmp_path)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"]["../../config.yaml"] = {"bytes": 1, "sha256": ""}
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert "outside of its folder" in verify(newest)[0]
