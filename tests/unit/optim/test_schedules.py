import math

import pytest

from restomod.config import OptimizerConfig, PhaseConfig, ScheduleConfig
from restomod.optim.schedules import decay_of_weights, peak_lr, step_factor, trapezoid

TOTAL = 1000


def schedule(**changes):
    return ScheduleConfig(**{"warmup": "100", "decay": "400", **changes})


@pytest.mark.parametrize(
    ("slots", "factor"),
    [(-5, 0), (0, 0), (25, 0.25), (99, 0.99), (100, 1), (350, 1), (600, 1), (2000, 0)],
)
def test_warmup_and_plateau(slots, factor):
    assert trapezoid(slots, TOTAL, schedule()) == pytest.approx(factor)


@pytest.mark.parametrize("passed", [0.0, 0.01, 0.25, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("final", [0.0, 0.001, 0.5])
def test_decay_follows_its_closed_form(passed, final):
    slots = 600 + 400 * passed
    linear = trapezoid(slots, TOTAL, schedule(decay_shape="linear", final_factor=final))
    root = trapezoid(slots, TOTAL, schedule(final_factor=final))
    cosine = trapezoid(slots, TOTAL, schedule(decay_shape="cosine", final_factor=final))
    assert linear == pytest.approx(final + (1 - final) * (1 - passed))
    assert root == pytest.approx(final + (1 - final) * (1 - math.sqrt(passed)))
    assert cosine == pytest.approx(final + (1 - final) * math.cos(math.pi * passed / 2) ** 2)


def test_a_shape_of_ones_own_is_called_with_the_share_that_has_passed(tmp_path, monkeypatch):
    (tmp_path / "shapes.py").write_text(
        "from dataclasses import dataclass\n\n\n"
        "@dataclass\n"
        "class Power:\n"
        "    power: int = 1\n\n"
        "    def __call__(self, passed):\n"
        "        return (1 - passed) ** self.power\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cubic = schedule(decay_shape="shapes:Power", decay_options={"power": 3}, final_factor=0.1)
    assert trapezoid(600, TOTAL, cubic) == 1
    assert trapezoid(800, TOTAL, cubic) == pytest.approx(0.1 + 0.9 * 0.125)
    assert trapezoid(1000, TOTAL, cubic) == pytest.approx(0.1)


def test_no_warmup_and_no_decay_is_constant():
    constant = schedule(warmup="0", decay="0")
    assert {trapezoid(slots, TOTAL, constant) for slots in range(0, 1001, 10)} == {1.0}


def test_steps_take_the_middle_of_their_slots():
    phase = PhaseConfig(slots="1000", row_tokens=100, batch_rows=1, schedule=schedule())
    factors = [step_factor(step, phase) for step in range(phase.steps)]
    assert len(factors) == 10
    assert factors[0] == pytest.approx(0.5)
    assert factors[1:6] == [1.0] * 5
    assert factors[-1] == pytest.approx(1 - math.sqrt(350 / 400))


def test_phase_is_rounded_up_to_whole_batches():
    assert PhaseConfig(slots="1001", row_tokens=100, batch_rows=1).steps == 11


def test_a_phase_has_the_optimizers_rates_unless_it_says_otherwise():
    optimizer = OptimizerConfig(lr=1e-3, weight_decay=0.01)
    assert peak_lr(PhaseConfig(), optimizer) == 1e-3
    assert decay_of_weights(PhaseConfig(), optimizer) == 0.01
    phase = PhaseConfig(lr=2e-4, weight_decay=0.0)
    assert peak_lr(phase, optimizer) == 2e-4
    assert decay_of_weights(phase, optimizer) == 0.0
