from types import SimpleNamespace

import pytest

from restomod.finetune.trainer import BEST_SCORES, Watch
from restomod.interrupts import Interrupts
from restomod.prepare.atomic import read_json


class Weights:
    def state_dict(self):
        return {}


@pytest.fixture
def watch(tmp_path):
    return lambda keep_best: Watch(
        tmp_path, "seed 1", 1e9, lambda: {"f1": 0.5}, "f1", keep_best, Interrupts()
    )


def step(watch, number, epoch):
    """Take a step of ten in two epochs; return whether it was saved and whether it was the last."""
    state = SimpleNamespace(global_step=number, max_steps=10, epoch=epoch)
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    watch.on_step_end(None, state, control)
    assert not (control.should_save and watch.keep_best and epoch % 1 == 0)  # a kill may follow
    if control.should_training_stop or epoch % 1 == 0:
        watch.on_epoch_end(None, state, control, model=Weights())
    return control.should_save, control.should_training_stop


@pytest.mark.parametrize("keep_best", [False, True])
def test_a_stop_saves_and_does_not_score_the_epoch_that_it_cuts_short(watch, tmp_path, keep_best):
    watched = watch(keep_best)
    assert step(watched, 1, 0.2) == (False, False)
    watched.interrupts.asked = "SIGTERM"
    assert step(watched, 2, 0.4) == (True, True)
    assert not (tmp_path / BEST_SCORES).exists()


@pytest.mark.parametrize(("number", "epoch"), [(5, 1.0), (10, 2.0)])
def test_a_complete_epoch_may_be_the_best_though_a_stop_came(watch, tmp_path, number, epoch):
    watched = watch(True)
    watched.interrupts.asked = "SIGTERM"
    saved, stopped = step(watched, number, epoch)
    assert (saved, stopped) == (number < 10, True)  # after the last step nothing goes on
    assert read_json(tmp_path / BEST_SCORES)["epoch"] == epoch
