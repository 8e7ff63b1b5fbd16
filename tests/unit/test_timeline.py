"""Phases follow each other without a gap, wherever the run begins."""

import pytest

from restomod.config import BatchWarmupConfig, PhaseConfig
from restomod.timeline import Origin, Timeline

PHASES = [
    PhaseConfig(
        name="pretrain",
        slots="95",
        row_tokens=10,
        batch_rows=2,
        batch_warmup=BatchWarmupConfig(slots="20", first_rows=1, increment_rows=1),
    ),
    PhaseConfig(name="extension", slots="120", row_tokens=40, batch_rows=1),
    PhaseConfig(name="decay", slots="1", row_tokens=40, batch_rows=2),
]


@pytest.mark.parametrize("origin", [Origin(), Origin(step=7, row=5, slots=1000)])
def test_spans_follow_each_other(origin):
    timeline = Timeline(PHASES, origin)
    assert timeline.origin is origin
    # pretrain: 2 rows in steps of 1, then 7.5 rows more in 4 steps of 2: 10 rows.
    steps = [span.first_step - origin.step for span in timeline.spans]
    rows = [span.first_row - origin.row for span in timeline.spans]
    slots = [span.first_slot - origin.slots for span in timeline.spans]
    assert steps == [0, 6, 9]
    assert rows == [0, 10, 13]
    assert slots == [0, 100, 220]
    assert timeline.end_step - origin.step == 10
    row = origin.row
    for step in range(origin.step, timeline.end_step):
        span = timeline.at(step)
        assert span.rows_before(step) == row
        for n in range(span.batch_rows(step)):
            assert timeline.step_of(row + n) == step
        row += span.batch_rows(step)
    last = timeline.spans[-1]
    assert timeline.at(timeline.end_step + 5) is last
    assert last.slots_before(timeline.end_step) == origin.slots + 300


def test_phase_ends_are_known():
    timeline = Timeline(PHASES)
    assert [step for step in range(12) if timeline.ends_phase(step)] == [6, 9, 10]
