"""Every key of a recipe is free to change on a resume, or guarded by name."""

import copy
import dataclasses

import pytest

from restomod.config import (
    BatchWarmupConfig,
    MaskConfig,
    MaskStep,
    PhaseConfig,
    Recipe,
    StreamConfig,
)
from restomod.errors import UserError
from restomod.recipe import flatten
from restomod.timeline import Timeline
from restomod.train.guards import check_startable, check_unchanged, guarded, place

GUARDED_PARTS = {"seed", "model", "init", "optimizer", "data", "phases", "faults", "start"}
FREE_PARTS = {
    "run_name", "runs_dir", "store", "cache_dir", "device", "deterministic", "tokenizer", "compute",
    "parallel", "data", "phases", "evaluation", "checkpoint", "stop_after", "faults", "profile",
    "logging", "card", "resume",
}  # fmt: skip


def recipe() -> Recipe:
    """Return a recipe that sets what has no default."""
    stream = StreamConfig(path="mds/web")
    return Recipe(
        phases=[
            PhaseConfig(
                name="pretrain",
                slots="64K",
                row_tokens=1000,
                batch_rows=8,
                batch_warmup=BatchWarmupConfig("8K", first_rows=4, increment_rows=4),
                mask=MaskConfig(later=[MaskStep("16K", 0.1)]),
                mixture={"web": 1.0},
            )
        ],
        **{"data": dataclasses.replace(Recipe().data, streams={"web": stream})},
    )


IDENTITY = {"tokenizer": "a1", "data.streams.web": "b2", "data.streams.web.tokens": "1000"}


def manifest(of: Recipe, step: int = 1) -> dict:
    """Return what a checkpoint after the first steps says."""
    timeline = Timeline(of.phases)
    return {
        "step": step,
        **place(timeline, step),
        "fingerprint": IDENTITY,
        "recipe": guarded(of),
    }


def changed(key: str) -> Recipe:
    """Return a recipe with another value of a key."""
    made = copy.deepcopy(recipe())
    *parents, last = key.split(".")
    target = made
    for name in parents:
        if isinstance(target, list):  # of phases, or of the steps of a mask rate
            target = target[0]
        else:
            target = target[name] if isinstance(target, dict) else getattr(target, name)
    old = target[last] if isinstance(target, dict) else getattr(target, last)
    new = {
        bool: lambda: not old,
        int: lambda: old + 1000,
        float: lambda: old + 0.125,
        str: lambda: "24K" if old.strip("K").isdigit() else old + "x",
        list: lambda: [*old, 1],
        dict: lambda: {"x": 1},
        type(None): lambda: 0.5,
    }[type(old)]()
    if isinstance(target, dict):
        target[last] = new
    else:
        setattr(target, last, new)
    return made


KEYS = list(flatten(recipe()))
GUARDED = list(guarded(recipe()))
# Another name is another phase, and rows of another length end it elsewhere.
MOVES_PHASES = tuple(f"phases.pretrain.{x}" for x in ("name", "row_tokens", "batch_rows"))
MOVES_PHASES += ("start.phase",)


MOVES_ROWS = tuple(
    f"phases.pretrain.{x}" for x in ("row_tokens", "batch_rows", "batch_warmup.first_rows")
)
ALLOWED = [key for key in GUARDED if key not in (*MOVES_PHASES, *MOVES_ROWS, "data.lanes")]


@pytest.mark.parametrize("key", ALLOWED)
def test_guarded_key_is_refused_by_name_unless_allowed(key):
    made, saved = changed(key), manifest(recipe())
    with pytest.raises(UserError) as refusal:
        check_unchanged(saved, made, IDENTITY)
    old, new = saved["recipe"].get(key), guarded(made).get(key)
    assert old != new
    assert f"{key}: was {old!r}, is {new!r}" in str(refusal.value)
    assert "another run_name, or list the key in resume.allow" in str(refusal.value)
    made.resume.allow = [key]
    assert check_unchanged(saved, made, IDENTITY) == [key]


@pytest.mark.parametrize("key", MOVES_ROWS)
def test_steps_that_are_done_keep_their_rows_and_slots_whatever_is_allowed(key):
    """Or loader, schedules and ledger would take the next rows for those of another step."""
    made = changed(key)
    made.phases[0].slots = "64M"  # so that it does not end before the checkpoint
    made.resume.allow = [key]
    with pytest.raises(UserError, match=r"3 steps took 16 rows and 16,000 slots, with"):
        check_unchanged(manifest(recipe(), 3), made, IDENTITY)


def test_lanes_are_fixed_whatever_is_allowed():
    made = changed("data.lanes")
    made.resume.allow = ["data"]
    told = r"(?s)data\.lanes: was 8, is 1008.*fixed for the life.*or choose another run_name$"
    with pytest.raises(UserError, match=told):
        check_unchanged(manifest(recipe()), made, IDENTITY)


@pytest.mark.parametrize("key", MOVES_PHASES)
def test_key_that_moves_a_phase_is_refused(key):
    made = changed(key)
    with pytest.raises(UserError, match=r"phases\.?"):
        check_unchanged(manifest(recipe()), made, IDENTITY)


@pytest.mark.parametrize("key", [key for key in KEYS if key not in GUARDED])
def test_free_key_just_changes(key):
    made = changed(key)
    assert check_unchanged(manifest(recipe()), made, IDENTITY) == []


def test_no_part_of_a_recipe_is_free_or_guarded_by_mistake():
    assert {key.split(".")[0] for key in GUARDED} == GUARDED_PARTS
    assert {key.split(".")[0] for key in set(KEYS) - set(GUARDED)} == FREE_PARTS


def test_the_same_number_of_slots_may_be_written_otherwise():
    made = recipe()
    made.phases[0].batch_warmup.slots = "8_000"
    made.phases[0].mask.later[0].at = "0.016M"
    assert check_unchanged(manifest(recipe()), made, IDENTITY) == []


@pytest.mark.parametrize("key", IDENTITY)
def test_changed_data_is_refused_by_name(key):
    now = {**IDENTITY, key: "other"}
    for check in (check_unchanged, lambda *words: check_startable(*words, "step-00000001")):
        with pytest.raises(UserError) as refusal:
            check(manifest(recipe()), recipe(), now)
        assert f"{key}: was {IDENTITY[key]!r}, is 'other'" in str(refusal.value)


@pytest.mark.parametrize("key", [k for k in GUARDED if k.startswith(("model", "seed", "data"))])
def test_no_run_starts_from_another_model_data_or_seed(key):
    made = changed(key)
    with pytest.raises(UserError, match=key):
        check_startable(manifest(recipe()), made, IDENTITY, "step-00000001")


def test_a_key_that_is_newer_than_the_checkpoint_had_its_default():
    older = manifest(recipe())
    for key in ("optimizer.clip_norm", "phases.pretrain.z_loss"):
        del older["recipe"][key]
    assert check_unchanged(older, recipe(), IDENTITY) == []
    changed = recipe()
    changed.optimizer.clip_norm, changed.phases[0].z_loss = 1.0, 1e-4
    with pytest.raises(UserError) as error:
        check_unchanged(older, changed, IDENTITY)
    assert "optimizer.clip_norm: was 0.0, is 1.0" in str(error.value)
    assert "phases.pretrain.z_loss: was 0.0, is 0.0001" in str(error.value)
