"""A hang ends the job, and every rank tells where it stood."""

import json
import os
import threading
import time

import pytest

from restomod.train.faults import watchdog
from restomod.train.faults.watchdog import Watchdog


@pytest.fixture
def ended(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(watchdog, "GRACE_S", 0.0)
    return codes


def wait_until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def hang_in_here(holds):
    wait_until(holds)


@pytest.mark.parametrize("rank", [0, 3])
def test_hang_is_told_with_a_stack_and_asks_for_requeue(tmp_path, ended, rank, monkeypatch):
    """On each node: they may share no folder."""
    monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
    with Watchdog(tmp_path, rank, timeout_s=0.2).watching():
        hang_in_here(lambda: ended)
    assert set(ended) == {75}
    (stacks,) = (tmp_path / "hangs").iterdir()
    assert stacks.name == f"step-00000000-rank-{rank:05d}.txt"
    assert "hang_in_here" in stacks.read_text()
    assert (tmp_path / "REQUEUE").exists() == (rank == 0)
    if rank == 0:
        assert json.loads((tmp_path / "REQUEUE").read_text())["reason"] == "hang"


def test_hang_ends_the_job_though_nothing_can_be_written(tmp_path, ended, caplog):
    (tmp_path / "hangs").touch()  # where a folder would be
    with Watchdog(tmp_path, 0, timeout_s=0.2).watching():
        wait_until(lambda: ended)
    assert set(ended) == {75}
    assert f"{tmp_path} cannot be written: " in caplog.text


def test_somebody_is_told_before_the_job_ends(tmp_path, ended):
    told = []

    def tell(step, reason):
        told.append((step, reason, list(ended)))

    with Watchdog(tmp_path, 0, 0.2, tell).watching():
        wait_until(lambda: ended)
    assert told[0] == (0, "nothing was finished for 0.2 s", [])


def test_rank_that_fails_in_a_hang_ends_as_the_others_do(tmp_path, ended, monkeypatch):
    """Its main thread fails as soon as the first of them has ended."""
    monkeypatch.setattr(watchdog, "GRACE_S", 0.5)
    dog = Watchdog(tmp_path, 0, timeout_s=0.2)

    def leave(code):
        ended.append(code)
        dog._ended.set()

    def fail_in_a_hang():
        with dog.watching():
            wait_until((tmp_path / "REQUEUE").exists)
            raise ConnectionResetError

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(ConnectionResetError):
        fail_in_a_hang()
    assert ended == [75]


def test_hang_that_ends_with_the_run_is_forgiven(tmp_path, ended, monkeypatch):
    monkeypatch.setattr(watchdog, "GRACE_S", 0.5)
    before = set(threading.enumerate())
    with Watchdog(tmp_path, 0, timeout_s=0.2).watching():
        wait_until((tmp_path / "REQUEUE").exists)
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
    assert ended == []


def test_beats_keep_it_quiet(tmp_path, ended):
    dog = Watchdog(tmp_path, 0, timeout_s=0.5)
    with dog.watching():
        for _ in range(20):
            time.sleep(0.05)
            dog.beat()
    time.sleep(0.6)  # ended: nobody watches
    assert ended == []
    assert not (tmp_path / "hangs").exists()
