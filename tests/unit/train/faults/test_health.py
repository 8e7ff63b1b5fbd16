"""Spikes are told from noise, and the ledger from what is not on it."""

import math

import numpy as np
import pytest
import torch

from restomod.config import SpikeConfig
from restomod.train.faults.health import LossWindow
from restomod.train.faults.ledger import Ledger, read_ledger

CPU = torch.device("cpu")
NO = torch.tensor(False)


def filled(losses, window=16):
    made = LossWindow(SpikeConfig(window_steps=window), CPU)
    for loss in losses:
        made.add(torch.tensor(float(loss)), NO)
    return made


def test_deviations_are_robust_standard_deviations_above_the_median():
    losses = np.random.default_rng(0).normal(5, 0.1, 16)
    window = filled(losses)
    median = np.median(losses)
    deviation = 1.4826 * np.median(np.abs(losses - median))
    expected = (6 - median) / deviation
    assert float(window.deviations(torch.tensor(6.0))) == pytest.approx(expected, rel=1e-4)
    assert float(window.deviations(torch.tensor(5.1))) < 4
    assert float(window.deviations(torch.tensor(4.0))) < 0


def test_one_spike_in_the_window_hides_no_other():
    window = filled([5 + 0.1 * (n % 3) for n in range(15)] + [1000])
    assert float(window.deviations(torch.tensor(9.0))) > 8


def test_nothing_is_judged_by_too_few_steps():
    assert float(filled([5] * 7).deviations(torch.tensor(100.0))) == -math.inf
    assert float(filled([5] * 8).deviations(torch.tensor(100.0))) > 8


def test_losses_that_never_move_make_no_spike_of_rounding():
    assert float(filled([5] * 16).deviations(torch.tensor(5.004))) < 1


def test_window_forgets_leaves_out_and_goes_on_from_its_state():
    window = filled([1] * 16 + [5, 5.1, 5.2, 5.1] * 4)
    assert float(window.deviations(torch.tensor(5.2))) < 2
    window.add(torch.tensor(1000.0), torch.tensor(True))
    assert max(window.state_dict()["losses"]) == pytest.approx(5.2)
    again = LossWindow(SpikeConfig(window_steps=16), CPU)
    again.load_state_dict(window.state_dict())
    assert again.state_dict() == window.state_dict()
    window.clear()
    assert float(window.deviations(torch.tensor(1000.0))) == -math.inf


def test_ledger_covers_whole_steps_that_touch_an_entry(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add({"first_row": 8, "rows": 4, "step": 3, "reason": "spike"}, write=True)
    assert [ledger.covers(row, 4) for row in (0, 4, 8, 12)] == [False, False, True, False]
    assert ledger.covers(5, 4)
    assert ledger.covers(11, 1)
    assert not ledger.covers(12, 1)


def test_ledger_of_checkpoint_and_folder_are_one(tmp_path):
    first = {"first_row": 8, "rows": 4, "step": 3, "reason": "spike"}
    second = {"first_row": 80, "rows": 4, "step": 21, "reason": "spike"}
    ledger = Ledger(tmp_path)
    ledger.add(first, write=True)
    ledger.add(second, write=False)  # another rank's
    assert read_ledger(tmp_path) == [first]
    assert Ledger(tmp_path, [first], read_ledger(tmp_path)).entries == [first]
    assert Ledger(tmp_path, [second], read_ledger(tmp_path)).entries == [second, first]
    assert read_ledger(tmp_path / "new") == []
