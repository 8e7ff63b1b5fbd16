"""Requests to stop are noted at any time, and break in where they may."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from restomod.train.faults import stopping
from restomod.train.faults.stopping import (
    Stopper,
    StopRequested,
    clear_requeue,
    exit_code,
    leave_requeue,
)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # the handler runs between two instructions of the interpreter


@pytest.fixture
def stopper():
    """One whose run has begun, and whose ranks have not agreed on anything yet."""
    with Stopper().listening() as made:
        made.hold(lossless=True)
        made.hold()
        yield made


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_signal_is_noted_and_repeats_change_nothing(stopper, name):
    assert stopper.agree() == ""
    send(getattr(signal, name))
    assert stopper.agree() == name
    for other in ("SIGTERM", "SIGUSR1"):
        send(getattr(signal, other))
    assert stopper.agree() == name


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Stopper().listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


LEAVES = """
import atexit, os, signal, sys
from restomod.train.faults.stopping import Stopper
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
with Stopper().listening() as stopper:
    stopper.ignore()
sys.exit(75)
"""


def test_rank_that_leaves_late_keeps_its_exit_code():
    """A launcher sends SIGTERM to it when the first rank has ended."""
    assert subprocess.run([sys.executable, "-c", LEAVES], check=False).returncode == 75


IMPORTS = """
import os, signal
from restomod.train.faults.stopping import Stopper
with Stopper().listening() as stopper:
    with stopper.staying():
        import composer
    os.kill(os.getpid(), signal.SIGTERM)
    assert stopper.agree() == "SIGTERM"
"""


def test_composers_import_takes_no_handler():
    assert subprocess.run([sys.executable, "-c", IMPORTS], check=False).returncode == 0


def test_second_interrupt_ends_at_once_and_an_echo_of_the_first_does_not(stopper, monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    send(signal.SIGINT)
    send(signal.SIGINT)  # what a launcher passes on
    assert ended == []
    monkeypatch.setattr(stopping, "SAME_PRESS_S", 0.0)
    time.sleep(0.01)
    send(signal.SIGINT)
    assert ended == [130]


def test_request_breaks_in_before_the_first_step():
    with Stopper().listening() as stopper:
        send(signal.SIGTERM)  # while the recipe is read, which says where the run is
        with pytest.raises(StopRequested) as stop:
            stopper.hold(lossless=True)
    assert (stop.value.reason, stop.value.agreed) == ("SIGTERM", False)


def test_request_that_was_noted_breaks_in_once_it_may(stopper):
    send(signal.SIGTERM)
    with pytest.raises(StopRequested):
        stopper.hold(lossless=True)
    send(signal.SIGTERM)  # once is enough


def test_signal_wakes_what_may_be_broken_into(stopper):
    stopper.hold(lossless=True)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    began = time.monotonic()
    with pytest.raises(StopRequested):
        time.sleep(30)
    assert time.monotonic() - began < 20


DEAF = """
import ctypes, os, signal, sys, threading
from pathlib import Path
from restomod.train.faults import stopping

stopping.POLL_S, stopping.DEAF_S = 0.05, 0.2
said = Path(sys.argv[1])
with stopping.Stopper().listening() as stopper:
    stopper.watch(said, float("inf"), lambda reason: said.joinpath(reason).touch() or 75)
    stopper.hold(lossless=sys.argv[2] == "lossless")
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    threading.Timer(2, os._exit, (3,)).start()
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):  # the second time it waits for ever, and no handler runs
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize(("how", "code"), [("lossless", 75), ("between steps", 3)])
def test_a_main_thread_that_hears_nothing_is_not_waited_for_where_nothing_is_lost(
    tmp_path, how, code
):
    """As in the start of a process group, of which another rank has left."""
    command = [sys.executable, "-c", DEAF, tmp_path, how]
    assert subprocess.run(command, check=False).returncode == code
    assert (tmp_path / "SIGUSR1").exists() == (code == 75)


class Store:
    """What ranks tell each other."""

    def __init__(self, **told):
        self.told = told

    def check(self, keys):
        return all(key in self.told for key in keys)

    def get(self, key):
        return self.told[key].encode()

    def set(self, key, value):
        self.told[key] = value


@pytest.fixture
def deaf(stopper, tmp_path, monkeypatch):
    """Return a function by which a signal arrives that no handler of the main thread hears, where
    it may break in; it returns the exit code."""
    ended = []

    def end(code):
        ended.append(code)
        stopper._ended.set()

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(stopping, "POLL_S", 0.02)
    monkeypatch.setattr(stopping, "DEAF_S", 0.1)

    def arrives(store, leave=lambda reason: 75):
        stopper._store = store
        stopper.hold(lossless=True)
        stopper.watch(tmp_path, float("inf"), leave)
        written = signal.set_wakeup_fd(-1)
        os.write(written, bytes([signal.SIGTERM]))
        signal.set_wakeup_fd(written)
        assert stopper._ended.wait(30)
        return ended[0]

    return arrives


def test_a_rank_that_hears_nothing_tells_the_others_before_it_ends(deaf):
    """Who may compile for minutes yet, and would take its end for a failure."""
    store = Store()
    assert deaf(store) == 75
    assert store.told == {stopping.STOPPED: "SIGTERM"}


def test_a_rank_that_hears_nothing_ends_as_another_that_has_failed(deaf):
    """For which the launcher ends the job: to go on would fail again."""
    asked = []
    assert deaf(Store(**{stopping.FAILED: "1"}), lambda reason: asked.append(reason) or 75) == 1
    assert asked == []  # no REQUEUE


def test_a_rank_that_hears_nothing_ends_though_nothing_can_be_written(deaf, caplog):
    def leave(reason):
        raise OSError(28, "No space left on device")

    assert deaf(None, leave) == 1
    assert "cannot be written: " in caplog.text


def test_requests_are_heard_where_the_system_makes_plain_pipes_alone(monkeypatch):
    monkeypatch.delattr(os, "pipe2", raising=False)  # as on a Mac
    with Stopper().listening() as stopper:
        send(signal.SIGTERM)
        assert stopper._signal() == stopper.requested == "SIGTERM"
        assert stopper._signal() == ""


def test_lost_connection_is_a_stop_only_where_ranks_leave_without_agreeing(stopper, monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *a, **k: None)
    monkeypatch.setattr(stopper, "_group", object())

    def becomes(kind: type[BaseException]) -> None:
        with pytest.raises(kind), stopper.leaving_together():
            raise RuntimeError("Connection closed by peer")

    becomes(RuntimeError)
    send(signal.SIGTERM)
    becomes(StopRequested)
    with pytest.raises(RuntimeError, match="sizes"), stopper.leaving_together():
        raise RuntimeError("sizes differ")
    stopper.agree()
    becomes(RuntimeError)  # a rank failed, and the launcher ends the others
    with pytest.raises(StopRequested):
        stopper.hold(lossless=True)
    becomes(StopRequested)


def test_a_rank_that_polls_late_learns_from_the_store_why_another_has_left(stopper):
    stopper._store = Store(**{stopping.STOPPED: "STOP file"})
    with pytest.raises(StopRequested, match="STOP file"), stopper.leaving_together():
        raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(("ranks", "waits"), [("1", False), ("2", True)])
def test_a_stop_file_stays_until_ranks_that_have_not_joined_have_seen_it(
    stopper, tmp_path, monkeypatch, ranks, waits
):
    monkeypatch.setenv("WORLD_SIZE", ranks)
    monkeypatch.setattr(stopping, "POLL_S", 0.05)
    stopper.hold(lossless=True)
    stopper.watch(tmp_path, float("inf"), len)
    (tmp_path / "STOP").touch()
    with pytest.raises(StopRequested):
        time.sleep(30)
    began = time.monotonic()
    stopper.tell()
    assert (time.monotonic() - began >= 2 * stopping.POLL_S) == waits


def test_reason_that_only_another_rank_knows_is_told(stopper, monkeypatch, caplog):
    def asked_by_another(code, *args, **kwargs):
        code.fill_(stopping.REASONS.index("lost launcher"))

    monkeypatch.setattr(torch.distributed, "all_reduce", asked_by_another)
    monkeypatch.setattr(stopper, "_group", object())
    caplog.set_level("INFO")
    assert [stopper.agree(), stopper.agree()] == ["lost launcher"] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "lost launcher: all ranks save now and stop"
    ]


def test_ranks_whose_launcher_was_killed_stop(stopper, tmp_path, monkeypatch):
    class Gone:
        def check(self, keys):
            raise torch.distributed.DistNetworkError("Connection reset by peer")

    stopper.hold(lossless=True)
    stopper._store = Gone()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    stopper.watch(tmp_path, time.monotonic() + 1000, len)
    time.sleep(1.5 * stopping.POLL_S)
    assert not stopper.requested  # a store that is gone asks for nothing
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(StopRequested, match="lost launcher"):
        time.sleep(30)


@pytest.mark.parametrize("way", ["file", "limit"])
def test_stop_file_and_time_limit_are_found_and_break_in(stopper, tmp_path, way):
    stopper.hold(lossless=True)
    stopper.watch(tmp_path, time.monotonic() + (0.3 if way == "limit" else 1000), len)
    if way == "file":
        (tmp_path / "STOP").touch()
    with pytest.raises(StopRequested) as stop:
        time.sleep(30)
    assert stop.value.reason == {"file": "STOP file", "limit": "stop_after"}[way]


def test_requeue_says_why_and_consumes_the_stop_file(tmp_path, monkeypatch):
    (tmp_path / "STOP").touch()
    leave_requeue(tmp_path, "STOP file", 12)
    assert not (tmp_path / "STOP").exists()
    assert json.loads((tmp_path / "REQUEUE").read_text()) == {"reason": "STOP file", "step": 12}
    clear_requeue(tmp_path)
    clear_requeue(tmp_path)
    assert not (tmp_path / "REQUEUE").exists()


def test_torchrun_is_told_that_all_went_well(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert exit_code() == 75
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert exit_code() == 0
