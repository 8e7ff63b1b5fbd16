"""Which events people want to be told of, and the messages that are posted for them.

The webhook's address is a secret: it comes from an environment variable, and neither it nor an
error that may contain it is ever written.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from restomod.config import AlertsConfig
from restomod.errors import UserError
from restomod.train.watching.background import Line

log = logging.getLogger(__name__)

POST_TIMEOUT_S = 10.0
PAUSES_S = (0.0, 1.0, 4.0)
"""Before each try."""
QUIET_S = 300.0
"""After an alert of a spike, others of spikes are not sent: a bad stretch of data has many."""


@dataclass(frozen=True)
class Alert:
    """A message about an event."""

    kind: str
    """One of `config.ALERTS`."""
    text: str
    bad: bool
    """Whether something went wrong."""


def alert_of(line: Line, run_name: str) -> Alert | None:
    """Return what is said of a line of metrics.jsonl, if it is worth an alert."""
    event, step = line["event"], line.get("step")
    at = "" if step is None else f" at step {step:,}"
    if event == "end":
        return Alert("end", f"{run_name} is complete{at}", False)
    if event == "stop":
        return Alert("stop", f"{run_name} was stopped{at}: {line['reason']}", False)
    if event == "rollback":
        text = f"the loss of step {line['spike_step']:,} was {_spike(line)}: back to step {step:,}"
        return Alert("spike", f"{run_name}: {text}", True)
    if event == "skipped_step" and line["reason"] == "spike":
        return Alert("spike", f"{run_name}: step {step:,} was skipped: loss {_spike(line)}", True)
    if event in ("nonfinite", "hang", "failure"):
        what = {"hang": "hangs", "nonfinite": "was stopped", "failure": "failed"}[event]
        return Alert(event, f"{run_name} {what}{at}: {line['reason']}", True)
    return None


def _spike(line: Line) -> str:
    """Say how high a loss was, and how far above those before it; null is infinite."""
    if line["loss"] is None:
        return "infinite"
    return f"{line['loss']:.3f}, {line['deviations']:.0f} deviations above those before it"


class Chosen:
    """The alerts that a recipe asks for, not too many of a kind."""

    def __init__(self, events: list[str], run_name: str) -> None:
        self._events = events
        self._run_name = run_name
        self._spike_at = -float("inf")

    def alert(self, line: Line) -> Alert | None:
        """Return the alert that `line` gives rise to, if any."""
        alert = alert_of(line, self._run_name)
        if alert is None or alert.kind not in self._events:
            return None
        if alert.kind == "spike":
            if time.monotonic() - self._spike_at < QUIET_S:
                return None
            self._spike_at = time.monotonic()
        return alert


def webhook_address(alerts: AlertsConfig) -> str:
    """Return where alerts are posted, empty if nowhere; raises UserError where the environment
    lacks it."""
    if not alerts.webhook:
        return ""
    address = os.environ.get(alerts.webhook, "")
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"logging.alerts.webhook: the environment variable {alerts.webhook} of rank 0 "
            f"{'is no http(s) address' if address else 'is not set'}; set it, or empty the key"
        )
    return address


class Webhook:
    """Posts alerts as JSON: `run`, `event`, `step`, `tokens`, `reason`, `host`, `time`, `text`."""

    def __init__(self, alerts: AlertsConfig, run_name: str) -> None:
        self.name = f"the webhook in {alerts.webhook}"
        self._address = webhook_address(alerts)
        self._chosen = Chosen(alerts.events, run_name)
        self._run_name = run_name

    def heard(self, line: Line) -> None:
        alert = self._chosen.alert(line)
        if alert is None:
            return
        self._post(
            {
                "run": self._run_name,
                "event": alert.kind,
                "step": line.get("step"),
                "tokens": line.get("tokens"),
                "reason": line.get("reason", ""),
                "host": socket.gethostname(),
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "text": alert.text,
            }
        )

    def close(self) -> None:
        pass

    def _post(self, message: Line) -> None:
        problem = ""
        for pause in PAUSES_S:
            time.sleep(pause)
            request = urllib.request.Request(
                self._address,
                json.dumps(message).encode(),
                {"Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=POST_TIMEOUT_S):
                    return
            except Exception as error:
                problem = _without_address(error)
        log.warning("%s took no alert (%s): %s", self.name, problem, message["text"])


def _without_address(error: Exception) -> str:
    """Return what went wrong; an exception's own text may hold the address."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    reason = getattr(error, "reason", error)
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else ""
    return text or type(reason).__name__
