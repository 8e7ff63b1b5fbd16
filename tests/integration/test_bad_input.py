"""Mistakes in data and in the command line: exit code 2, one message, nothing written."""

import json
import shutil
import signal

import pytest

from restomod.cli import train_main


@pytest.fixture(autouse=True)
def signals_as_they_were():
    """A command that ends leaves the signals ignored that would change its exit code."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def refused(tiny, tmp_path, capsys, monkeypatch):
    """Run train.py on the tiny recipe with overrides, and return its one message."""
    recipe = tiny.write(
        tmp_path / "recipe.yaml", runs_dir=str(tmp_path / "runs"), cache_dir=str(tmp_path / "cache")
    )

    def run(*overrides):
        assert train_main([str(recipe), *overrides]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("error: ") == 1
        assert not (tmp_path / "runs").exists()
        assert not (tmp_path / "cache").exists()
        return captured.err

    return run


def test_missing_data_folder(refused, tmp_path):
    assert f"{tmp_path}/none (stream prose): no such data folder" in refused(
        f"data.streams.prose.path={tmp_path}/none"
    )


def test_folder_without_index(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "index.json" in refused(f"data.streams.prose.path={tmp_path}/empty")


def test_missing_heldout_data(refused, tmp_path):
    message = refused(f"evaluation.streams.heldout.path={tmp_path}/none")
    assert "evaluation.streams.heldout" in message


def test_missing_tokenizer(refused, tmp_path):
    assert "no such tokenizer" in refused(f"tokenizer={tmp_path}/none")


def test_tokenizer_and_data_of_different_vocabularies(refused, tiny, tmp_path):
    content = json.loads((tiny.folder / "tokenizer" / "tokenizer.json").read_text())
    shutil.copytree(tiny.folder / "tokenizer", tmp_path / "other")
    merges = content["model"]["merges"]
    content["model"]["merges"] = merges[:-20]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content))
    message = refused(f"tokenizer={tmp_path}/other")
    for stream in ("code", "prose", "science"):
        assert f"data.streams.{stream}" in message
    assert "holds tokens of another vocabulary" in message


def test_batch_and_lanes_that_ranks_do_not_divide(refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    message = refused()
    assert "data.lanes: 4 lanes cannot be shared by 3 ranks; use 2 or 4 ranks" in message
    assert "4 rows are not divided by 3 ranks x 1 row of a micro-batch; use 3 or 6" in message


def test_batch_that_micro_batches_do_not_divide(refused):
    assert "use 3 or 6" in refused("phases.0.micro_batch_rows=3")


def test_only_rank_0_speaks(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for name in ("NODE_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")  # and put back what the command sets
    assert train_main([str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err == ""


def test_unknown_cuda(refused):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert "torch sees none here" in refused("device=cuda")
