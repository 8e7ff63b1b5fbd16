"""Alerts reach people, say what happened, and never who may post them."""

import logging
import socket
import time

import pytest

from restomod.config import ALERTS, AlertsConfig
from restomod.errors import UserError
from restomod.train.watching import alerts
from restomod.train.watching.alerts import Chosen, Webhook, alert_of
from restomod.train.watching.background import Background
from tests.webhook import webhook

SPIKE = {"event": "skipped_step", "step": 7, "reason": "spike", "loss": 9.5, "deviations": 40.2}
ROLLBACK = {"event": "rollback", "step": 5, "spike_step": 9, "loss": 9.5, "deviations": 40.2}

INFINITE = {"loss": None, "deviations": None}
"""As metrics.jsonl has it."""


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ({"event": "stop", "step": 1200, "reason": "SIGTERM"}, "stop", "step 1,200: SIGTERM"),
        ({"event": "end", "step": 24}, "end", "base is complete at step 24"),
        (SPIKE, "spike", "step 7 was skipped: loss 9.500, 40 deviations"),
        (ROLLBACK, "spike", "the loss of step 9 was 9.500, 40 deviations above"),
        (SPIKE | INFINITE, "spike", "step 7 was skipped: loss infinite"),
        (ROLLBACK | INFINITE, "spike", "the loss of step 9 was infinite: back to step 5"),
        ({"event": "hang", "step": 3, "reason": "for 30 s"}, "hang", "hangs at step 3: for 30 s"),
        ({"event": "failure", "reason": "UserError: full"}, "failure", "base failed: UserError"),
        ({"event": "nonfinite", "reason": "10 steps"}, "nonfinite", "was stopped: 10 steps"),
        ({"event": "skipped_step", "step": 7, "reason": "nonfinite"}, None, ""),
        ({"event": "train", "step": 7, "loss": 2.0}, None, ""),
    ],
)
def test_events_that_matter_are_told(line, kind, said):
    alert = alert_of(line, "base")
    assert (alert and alert.kind) == kind
    assert kind is None or said in alert.text
    assert Chosen([k for k in ALERTS if k != kind], "base").alert(line) is None


def test_spikes_are_not_told_one_by_one(monkeypatch):
    chosen = Chosen(list(ALERTS), "base")
    assert chosen.alert(SPIKE)
    assert chosen.alert(SPIKE) is None
    assert chosen.alert({"event": "end", "step": 9})
    monkeypatch.setattr(alerts, "QUIET_S", 0.0)
    assert chosen.alert(SPIKE)


def listening(monkeypatch, address):
    monkeypatch.setenv("HOOK", address)
    monkeypatch.setattr(alerts, "PAUSES_S", (0.0, 0.01, 0.01))
    return Background(Webhook(AlertsConfig(webhook="HOOK"), "base"))


def test_a_webhook_that_is_busy_is_tried_again(monkeypatch):
    with webhook(refusals=2) as hook:
        background = listening(monkeypatch, hook.address)
        background.hear({"event": "stop", "step": 3, "tokens": 6144, "reason": "STOP file"})
        background.close(time.monotonic() + 30)
    (message,) = hook.messages
    expected = {"run": "base", "event": "stop", "step": 3, "tokens": 6144, "reason": "STOP file"}
    assert {key: message[key] for key in expected} == expected
    assert message["host"] == socket.gethostname()
    assert message["text"].startswith("base was stopped")


@pytest.mark.parametrize("kind", ["refuses", "is silent", "fails"])
def test_a_webhook_that_does_not_answer_is_told_of_without_its_address(monkeypatch, caplog, kind):
    monkeypatch.setattr(alerts, "POST_TIMEOUT_S", 0.2)
    with webhook(refusals=9) as hook, socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/s3cr3t-token"
        if kind == "refuses":
            silent.close()
        background = listening(monkeypatch, hook.address if kind == "fails" else address)
        with caplog.at_level(logging.WARNING):
            background.hear({"event": "end", "step": 3})
            background.close(time.monotonic() + 30)
    assert "the webhook in HOOK took no alert" in caplog.text
    assert "base is complete" in caplog.text
    assert "s3cr3t" not in caplog.text
    assert hook.messages == []


@pytest.mark.parametrize("address", ["", "s3cr3t", "ftp://s3cr3t"])
def test_an_address_that_cannot_be_posted_to_is_refused_unseen(monkeypatch, address):
    monkeypatch.setenv("HOOK", address)
    with pytest.raises(UserError, match="variable HOOK of rank 0") as error:
        alerts.webhook_address(AlertsConfig(webhook="HOOK"))
    assert "s3cr3t" not in str(error.value)
