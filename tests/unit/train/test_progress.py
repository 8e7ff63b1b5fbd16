"""People see a bar, files get plain lines."""

import io
import logging
import sys
import time
from types import SimpleNamespace

import pytest

from restomod.config import PhaseConfig
from restomod.timeline import Timeline
from restomod.train.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def trained(steps):
    """Show that many steps of a run of four."""
    phase = PhaseConfig(name="decay", slots=4 * 1024, row_tokens=512, batch_rows=2)
    last = SimpleNamespace(last={"loss": 2.345, "tokens_per_s": 123_456.0})
    progress = Progress(Timeline([phase]), last, time.monotonic())
    progress.fit_start(None, None)
    for step in range(steps):
        at = SimpleNamespace(batch=SimpleNamespace(value=step))
        progress.batch_start(SimpleNamespace(timestamp=at), None)
        at.batch.value = step + 1
        progress.batch_end(SimpleNamespace(timestamp=at), None)
    progress.fit_end(None, None)


@pytest.fixture
def lines(caplog):
    with caplog.at_level(logging.INFO, logger="restomod"):
        yield lambda: [record.getMessage() for record in caplog.records]


def test_a_terminal_shows_a_bar(monkeypatch, lines):
    monkeypatch.setattr(sys, "stderr", Terminal())
    trained(4)
    shown = sys.stderr.getvalue()
    assert "decay" in shown
    assert "4/4" in shown
    assert [line for line in lines() if "loss" in line] == []


def test_a_file_gets_lines_now_and_then_and_at_the_end(monkeypatch, lines):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    trained(4)
    assert sys.stderr.getvalue() == ""
    told = [line for line in lines() if "loss" in line]
    assert [line.partition(":")[0] for line in told] == ["decay step 1/4", "decay step 4/4"]
    assert "loss 2.345, 123,456 tokens/s" in told[0]
