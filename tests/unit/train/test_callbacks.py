"""Callbacks of the user's own, before training begins."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from composer import Callback

from restomod.errors import UserError
from restomod.train import callbacks
from restomod.train.callbacks import UserCallbacks


@dataclass(eq=False)
class Keeps(Callback):
    """Returns some state."""

    what: str = "a number"

    def state_dict(self):
        if self.what == "not yet":
            raise AttributeError("only training sets it")
        return {"kept": {"a number": 1, "a tensor": torch.ones(2)}[self.what]}


def made(monkeypatch, what):
    monkeypatch.setattr(callbacks, "make", lambda given: Keeps(**given))
    recipe = SimpleNamespace(callbacks={"mine": {"what": what}})
    return UserCallbacks(recipe, None, {})


def test_a_state_that_no_checkpoint_gives_back_is_refused_before_training(monkeypatch):
    assert made(monkeypatch, "a number").state_dict() == {"mine": {"kept": 1}}
    made(monkeypatch, "not yet")
    with pytest.raises(UserError, match=r"callbacks\.mine: its state_dict.* JSON: .*Tensor"):
        made(monkeypatch, "a tensor")
