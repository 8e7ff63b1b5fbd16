"""Who listens to a run may be slow or fail: what it listens to goes on."""

import logging
import threading
import time

from restomod.train.watching import background
from restomod.train.watching.background import Background


class Listener:
    name = "a listener"

    def __init__(self, fails_at=None, waits_for=None):
        self.lines = []
        self.closed = False
        self._fails_at = fails_at
        self._waits_for = waits_for

    def heard(self, line):
        if self._waits_for:
            self._waits_for.wait()
        if line["step"] == self._fails_at:
            raise OSError("no room")
        self.lines.append(line["step"])

    def close(self):
        self.closed = True


def test_lines_come_in_order_and_all_of_them_before_the_end():
    listener = Listener()
    thread = Background(listener)
    for step in range(1000):
        thread.hear({"step": step})
    thread.close(time.monotonic() + 30)
    assert listener.lines == list(range(1000))
    assert listener.closed


def test_one_that_fails_hears_no_more_and_is_told_of_once(caplog):
    listener = Listener(fails_at=3)
    with caplog.at_level(logging.WARNING):
        thread = Background(listener)
        for step in range(10):
            thread.hear({"step": step})
        thread.close(time.monotonic() + 30)
    assert listener.lines == [0, 1, 2]
    assert listener.closed
    assert [r.message for r in caplog.records] == [
        "a listener fails, the run goes on without it: OSError: no room"
    ]


def test_one_that_hangs_holds_up_nobody_and_keeps_no_more_than_so_much(monkeypatch, caplog):
    monkeypatch.setattr(background, "MOST_WAITING", 5)
    goes_on = threading.Event()
    with caplog.at_level(logging.WARNING):
        thread = Background(Listener(waits_for=goes_on))
        for step in range(20):
            thread.hear({"step": step})
        thread.close(time.monotonic() + 0.1)
    goes_on.set()
    assert "is not done in time" in caplog.text
    assert "too slow for" in caplog.text
