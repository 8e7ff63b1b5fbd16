"""However a run ends, those who listen to it hear how."""

import json
import time

import pytest

from restomod.config import PhaseConfig, Recipe
from restomod.errors import UserError
from restomod.timeline import Origin, Timeline
from restomod.train.clock import RunClock
from restomod.train.faults.health import UnhealthyError
from restomod.train.faults.stopping import StopRequested
from restomod.train.metrics import MetricsLog
from restomod.train.watching.watch import listeners, watching
from tests.webhook import webhook

PHASE = PhaseConfig(slots="1M", row_tokens=512, batch_rows=2)


def stopped(step):
    stop = StopRequested("SIGTERM", agreed=True)
    stop.step = step
    return stop


def recipe_for(hook, monkeypatch):
    monkeypatch.setenv("HOOK", hook.address)
    recipe = Recipe(run_name="run")
    recipe.logging.wandb.mode = "disabled"
    recipe.logging.alerts.webhook = "HOOK"
    return recipe


def end_with(error, recipe, rank=0, timeline=None, log=None, meanwhile=()):
    """Have a watched block end with an error, after what happened meanwhile."""
    with watching(recipe, timeline or Timeline([PHASE]), rank) as watch:
        if log:
            watch.log = MetricsLog(log, RunClock(), watch.hear)
            watch.log.write("train", step=3, tokens=3072)
        for line in meanwhile:
            watch.hear(line)
        raise error


@pytest.mark.parametrize(
    ("error", "event", "step", "reason"),
    [
        (UserError("the disk is full"), "failure", 3, "UserError: the disk is full"),
        (ZeroDivisionError("by zero"), "failure", 3, "ZeroDivisionError: by zero"),
        (UnhealthyError("10 steps"), "nonfinite", 3, "UnhealthyError: 10 steps"),
        (stopped(4), "stop", 4, "SIGTERM"),
        (stopped(0), "stop", 3, "SIGTERM"),
    ],
)
def test_errors_and_requests_are_heard_and_written(
    tmp_path, monkeypatch, error, event, step, reason
):
    log = tmp_path / "metrics.jsonl"
    with webhook() as hook:
        recipe = recipe_for(hook, monkeypatch)
        with pytest.raises(type(error)):
            end_with(error, recipe, log=log)
    (message,) = hook.messages
    found = tuple(message[key] for key in ("event", "step", "tokens", "reason"))
    assert found == (event, step, step * 1024, reason)
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["event"], last["step"], last["reason"]) == (event, step, reason)


def test_a_run_that_ends_before_it_writes_is_heard_too(monkeypatch):
    timeline = Timeline([PHASE], Origin(step=100, row=200, slots=102_400))
    with webhook() as hook:
        with pytest.raises(UserError):
            end_with(
                UserError("no"),
                recipe_for(hook, monkeypatch),
                timeline=timeline,
                meanwhile=[{"event": "hang", "step": 101, "reason": "nothing"}],
            )
        hang, failure = hook.messages
    assert (hang["event"], hang["tokens"]) == ("hang", 103_424)
    assert (failure["event"], failure["tokens"]) == ("failure", 102_400)


def test_other_ranks_say_nothing(monkeypatch):
    with webhook() as hook:
        recipe = recipe_for(hook, monkeypatch)
        with pytest.raises(UserError):
            end_with(UserError("no"), recipe, rank=1)
        time.sleep(0.1)
    assert hook.messages == []


def test_recipes_choose_who_listens(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    recipe = Recipe(run_name="run")
    assert [one.name for one in listeners(recipe)] == ["W&B"]
    recipe.logging.wandb.mode = "disabled"
    assert listeners(recipe) == []
    recipe.logging.tensorboard = True
    assert [one.name for one in listeners(recipe)] == ["TensorBoard"]
