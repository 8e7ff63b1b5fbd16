"""Ranks and micro-batches decide who computes what, and nothing else."""

import pytest
import torch

from restomod import load_model
from tests.conftest import Tiny, Trainings, metrics


@pytest.fixture(scope="module")
def single(tiny: Tiny, train: Trainings, tmp_path_factory: pytest.TempPathFactory):
    recipe = tiny.write(tmp_path_factory.mktemp("recipe") / "recipe.yaml")
    code, text = train(recipe, "run_name=single")
    assert code == 0, text
    return recipe, metrics(tiny.folder / "runs" / "single")


def assert_same(lines, expected):
    assert len(lines) == len(expected) == 24
    for line, other in zip(lines, expected, strict=True):
        for key in ("step", "data_digest", "real_tokens", "masked_tokens", "epochs", "mixture"):
            assert line[key] == other[key], (line["step"], key)
    for line, other in zip(lines[:20], expected[:20], strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(("world_size", "rows"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_ranks_and_micro_batches_change_no_loss(tiny, train, single, world_size, rows):
    recipe, expected = single
    name = f"world-{world_size}-{rows}"
    code, text = train(
        recipe, f"run_name={name}", f"phases.0.micro_batch_rows={rows}", world_size=world_size
    )
    assert code == 0, text
    assert_same(metrics(tiny.folder / "runs" / name), expected)


@pytest.mark.parametrize(
    ("strategy", "world_size", "rows"),
    [
        ("{strategy: fsdp}", 2, 1),
        ("{strategy: hsdp, shard_ranks: 2, reshard_after_forward: false}", 4, 1),
        ("{strategy: fsdp}", 1, 2),
    ],
)
def test_sharing_a_model_changes_no_loss(tiny, train, single, strategy, world_size, rows):
    recipe, expected = single
    name = f"shared-{world_size}-{rows}"
    code, text = train(
        recipe,
        f"run_name={name}",
        f"parallel={strategy}",
        f"phases.0.micro_batch_rows={rows}",
        world_size=world_size,
    )
    assert code == 0, text
    folder = tiny.folder / "runs" / name
    assert_same(metrics(folder), expected)
    heldout = [line["domains"]["prose"] for line in metrics(folder, "eval")]
    for found, other in zip(heldout, metrics(folder.parent / "single", "eval"), strict=True):
        assert found["loss"] == pytest.approx(other["domains"]["prose"]["loss"], abs=1e-4)
        assert found["masked_tokens"] == other["domains"]["prose"]["masked_tokens"]
    guesses = [metrics(run, "samples")[-1]["samples"] for run in (folder, folder.parent / "single")]
    assert len(guesses[0]) == 2
    for mine, theirs in zip(*guesses, strict=True):
        assert mine["text"] == theirs["text"]
        mine, theirs = ([p["probability"] for p in g["predictions"]] for g in (mine, theirs))
        assert mine == pytest.approx(theirs, abs=1e-4)
    models = [load_model(folder.parent / run) for run in (name, "single")]
    for mine, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)


def test_run_goes_on_with_another_number_of_ranks(tiny, train, single):
    recipe, expected = single
    folder = tiny.folder / "runs" / "elastic"
    code, _ = train(
        recipe, "run_name=elastic", world_size=2, kill_when=lambda: len(metrics(folder)) >= 8
    )
    assert code == -9
    code, text = train(recipe, "run_name=elastic", "parallel.strategy=fsdp")
    assert code == 0, text
    assert_same(metrics(folder), expected)
