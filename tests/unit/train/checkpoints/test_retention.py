"""Which checkpoints stay."""

import pytest

from restomod.config import CheckpointConfig
from restomod.train.checkpoints.retention import Saved, kept, saved


def history(*losses, phase="pretrain", slots=100):
    return [Saved(n, n * slots, phase, loss) for n, loss in enumerate(losses, 1)]


def after_every_save(checkpoints, rules):
    """Return what is left when the rules were applied after each save, as in a run."""
    left = []
    for one in checkpoints:
        left.append(one)
        left = [other for other in left if other.step in kept(left, rules)]
    return [one.step for one in left]


def test_newest_stay():
    assert after_every_save(history(*[None] * 6), CheckpointConfig(keep=2)) == [5, 6]


@pytest.mark.parametrize(
    ("every", "expected"), [("250", [3, 5, 8, 9]), ("100", list(range(1, 10))), ("901", [9])]
)
def test_first_at_or_after_each_multiple_stays_for_ever(every, expected):
    rules = CheckpointConfig(keep=1, keep_every=every)
    assert after_every_save(history(*[None] * 9), rules) == expected


def test_best_stay_whatever_comes_later():
    checkpoints = history(3.0, 2.0, 2.5, None, 2.2, 9.0, 9.0)
    assert after_every_save(checkpoints, CheckpointConfig(keep=1, keep_best=2)) == [2, 5, 7]
    assert after_every_save(checkpoints, CheckpointConfig(keep=1, average_best=3)) == [2, 3, 5, 7]


def test_best_are_of_each_phase_by_itself():
    later = [Saved(n, n * 100, "decay", 5.0) for n in (4, 5)]
    checkpoints = [*history(3.0, 2.0, 2.5), *later]
    assert kept(checkpoints, CheckpointConfig(keep=1, keep_best=1)) == {2, 5}


def test_manifest_tells_the_loss_of_all_domains():
    manifest = {"step": 7, "slots": 70, "phase": "decay", "evaluation": None}
    assert saved(manifest) == Saved(7, 70, "decay", None)
    manifest["evaluation"] = {"step": 5, "domains": {"all": {"loss": 2.5}, "code": {"loss": 1.0}}}
    assert saved(manifest).loss == 2.5
    manifest["evaluation"]["domains"]["all"]["loss"] = float("nan")
    assert saved(manifest).loss is None
