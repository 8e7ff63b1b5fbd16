import pytest

from restomod.config import Recipe
from restomod.train.builder import _loggers


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "key"}, "online"),
        ({"WANDB_SWEEP_ID": "started by the agent, which has logged in"}, "online"),
    ],
)
def test_wandb_is_online_where_there_is_a_login(monkeypatch, variables, mode):
    for name in ("WANDB_API_KEY", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (logger,) = _loggers(Recipe())
    assert logger._init_kwargs["mode"] == mode
