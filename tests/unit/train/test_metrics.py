"""metrics.jsonl is JSON, whatever a run has measured."""

import json

from restomod.train.clock import RunClock
from restomod.train.metrics import MetricsLog


def test_numbers_that_are_not_finite_are_null_wherever_they_stand(tmp_path):
    heard = []
    log = MetricsLog(tmp_path / "metrics.jsonl", RunClock(), heard.append)
    infinite, unknown = float("inf"), float("nan")
    log.write(
        "eval", step=3, loss=infinite, domains={"all": {"loss": unknown, "masked_tokens": 8.0}},
        hooks={"mine": {"list": [1.5, -infinite]}},
    )  # fmt: skip
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    line = json.loads(text)
    assert line["loss"] is None
    assert line["domains"] == {"all": {"loss": None, "masked_tokens": 8.0}}
    assert line["hooks"] == {"mine": {"list": [1.5, None]}}
    assert heard == [line]
