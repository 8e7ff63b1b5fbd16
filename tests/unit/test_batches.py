"""Batch-size warm-up against its definition, step by step."""

import pytest

from restomod.batches import BatchSizes
from restomod.config import BatchWarmupConfig, PhaseConfig
from restomod.errors import UserError
from restomod.recipe import check_world


def warming_up(**changes) -> PhaseConfig:
    warmup = BatchWarmupConfig(
        **{"slots": "50B", "first_rows": 48, "increment_rows": 48, **changes}
    )
    return PhaseConfig(slots="1.719T", row_tokens=16_384, batch_rows=288, batch_warmup=warmup)


def test_paper_base_warms_up_from_768_to_4608_sequences_over_50_billion_slots():
    batches = warming_up().batches
    assert batches.distinct == (48, 96, 144, 192, 240, 288)
    # 50e9 / 16,384 rows over 48 + 96 + 144 + 192 + 240 = 720: 4,238.6 steps of each size.
    assert batches.steps_each == 4239
    assert batches.warmup_rows * 16_384 == pytest.approx(50e9, rel=2e-4)
    assert [batches.at(n * 4239) for n in range(6)] == [48, 96, 144, 192, 240, 288]
    assert [batches.at(n * 4239 - 1) for n in range(1, 6)] == [48, 96, 144, 192, 240]
    assert batches.at(10**9) == 288


@pytest.mark.parametrize(
    "batches",
    [
        BatchSizes(6),
        BatchSizes.warming_up(6, 2, 1, 40),
        BatchSizes.warming_up(7, 1, 3, 1),
        BatchSizes.warming_up(8, 2, 6, 3),
    ],
)
def test_closed_forms_equal_counting(batches):
    row = 0
    for step in range(60):
        assert batches.before(step) == row
        for _ in range(batches.at(step)):
            assert batches.step_of(row) == step
            row += 1
            assert batches.steps(row) == step + 1
    assert batches.steps(0) == 0
    assert {batches.warmup.count(size) for size in batches.warmup} <= {1}


def test_each_size_is_there_for_equally_many_steps():
    batches = BatchSizes.warming_up(6, 2, 1, 40)
    sizes = [batches.at(step) for step in range(batches.warmup_steps)]
    assert [sizes.count(size) for size in (2, 3, 4, 5)] == [3, 3, 3, 3]  # 40 / 14 rows is 2.9


def test_a_warmup_takes_one_step_of_each_size_at_least_and_none_from_the_full_size_on():
    short = BatchSizes.warming_up(7, 1, 3, 1)  # 1 row is a fifth of the 5 that both sizes take
    assert (short.warmup, short.steps_each) == ((1, 4), 1)
    assert BatchSizes.warming_up(7, 7, 3, 100) == BatchSizes(7)


def test_phase_counts_its_slots_through_the_warmup():
    phase = PhaseConfig(
        slots="1000",
        row_tokens=10,
        batch_rows=4,
        batch_warmup=BatchWarmupConfig(slots="120", first_rows=1, increment_rows=1),
    )
    # 12 rows over 1 + 2 + 3: two steps each; 88 rows are left, in 22 steps of 4.
    assert phase.steps == 6 + 22
    assert [phase.slots_before(step) for step in (0, 1, 2, 3, 6, 7)] == [0, 10, 20, 40, 120, 160]
    assert phase.total_slots == 1000


def test_every_size_must_be_divided_by_the_ranks(good_recipe):
    recipe = good_recipe(warming_up())
    recipe.data.lanes = 96
    check_world(recipe, 48)
    with pytest.raises(UserError, match=r"batches of 48, 144, 240 rows .* divide 48 rows"):
        check_world(recipe, 96)


@pytest.fixture
def good_recipe():
    from restomod.config import Recipe

    return lambda phase: Recipe(phases=[phase])
