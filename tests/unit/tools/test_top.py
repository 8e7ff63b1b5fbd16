"""`restomod top` shows a run from its log alone, reading each line once."""

import io
import json
import os
import time

import pytest
from rich.console import Console

from restomod.errors import UserError
from restomod.tools.record import following
from restomod.tools.record.following import Followed, Follower
from restomod.tools.top import top
from restomod.tools.top_frame import frame, short, sparkline, state

START = {
    "event": "start", "time_s": 0.5, "step": 0, "run_id": "r-1", "end_step": 100,
    "end_tokens": 204_800, "world_size": 8, "device": "H100", "host": "node7", "changed": [],
}  # fmt: skip


def trained(step, **changes):
    return {
        "event": "train", "time_s": float(step), "step": step, "phase": "pretrain",
        "tokens": step * 2048, "loss": 6.0 - step / 50, "tokens_per_s": 2_500_000.0, "mfu": 0.41,
        "data_wait_fraction": 0.012, "grad_norm": 0.375, "lr": 8e-4, **changes,
    }  # fmt: skip


def append(path, *lines, end="\n"):
    with path.open("a") as file:
        file.write("\n".join(json.dumps(line) for line in lines) + end)


def picture(folder, width=100, encoding="utf-8"):
    run = Followed(folder)
    while run.update():
        pass
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width)
    console.print(frame(run, console))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


@pytest.fixture
def folder(tmp_path):
    append(tmp_path / "metrics.jsonl", START, *(trained(n) for n in range(1, 51)))
    return tmp_path


def test_picture_says_how_far_how_fast_and_how_long_yet(folder):
    domains = {"code": {"loss": 3.25}, "all": {"loss": 3.5}}
    saved = {"bytes": 2.4e9, "seconds": 7.0, "stall_s": 0.3}
    spike = {"reason": "spike", "loss": 9.0, "deviations": 31.0}
    append(
        folder / "metrics.jsonl",
        {"event": "eval", "time_s": 50.0, "step": 50, "domains": domains},
        {"event": "checkpoint", "time_s": 50.5, "step": 50, **saved},
        {"event": "skipped_step", "time_s": 51.0, "step": 51, **spike},
        trained(51),
    )
    text = picture(folder)
    for part in (
        "training", "phase pretrain", "8 x H100", "step 51 of 100", "104K of 205K tokens", "51.0%",
        "49 s left", "loss 4.9800", "2.5M", "41.0%", "1.2%", "0.375", "all 3.5000  code 3.2500",
        "checkpoints: 50", "2.4 GB in 7.0 s", "skipped_step", "deviations 31", "host node7",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("width", [20, 30, 50, 200])
def test_picture_keeps_to_any_width_and_to_ascii(folder, width):
    text = picture(folder, width, "ascii")
    assert max(len(line) for line in text.splitlines()) <= width
    assert "4.98" in text or "5.0000" in text


def test_growing_file_is_read_once_and_a_half_line_waits(folder):
    path = folder / "metrics.jsonl"
    follower = Follower(path)
    lines, anew, more = follower.read()
    assert (len(lines), anew, more) == (51, True, False)
    assert follower.read() == ([], False, False)
    append(path, trained(51), end="")
    assert follower.read() == ([], False, False)
    append(path, end="\n")
    append(path, trained(52))
    lines, anew, _ = follower.read()
    assert ([line["step"] for line in lines], anew) == ([51, 52], False)


def test_a_long_log_is_read_in_pieces(folder, monkeypatch):
    monkeypatch.setattr(following, "PIECE", 1000)
    run = Followed(folder)
    assert run.update()
    assert 1 <= run.last.get("train", {"step": 1})["step"] < 10
    assert "step 50 of 100" in picture(folder)


def test_a_run_that_goes_back_is_read_anew(folder):
    path = folder / "metrics.jsonl"
    run = Followed(folder)
    run.update()
    assert run.last["train"]["step"] == 50
    shorter = folder / "tmp"
    append(
        shorter,
        START,
        *(trained(n) for n in range(1, 21)),
        {"event": "resume", "time_s": 20.0, "step": 20},
    )
    shorter.replace(path)
    append(path, trained(21))
    run.update()
    assert run.last["train"]["step"] == 21
    assert [line["step"] for line in run.recent] == [21]
    assert [event["event"] for event in run.log.events] == ["start", "resume"]
    assert len(run.losses.buckets()) == 21


def test_what_a_run_does_is_told(folder):
    def now(*lines):
        append(folder / "metrics.jsonl", *lines)
        run = Followed(folder)
        run.update()
        return state(run)[0]

    assert now(trained(51)) == "training"
    os.utime(folder / "metrics.jsonl", (time.time() - 3600,) * 2)
    silent = Followed(folder)
    silent.update()
    assert state(silent)[0] == "silent for 1 h 00 min"
    (folder / "REQUEUE").write_text(json.dumps({"reason": "hang", "step": 51}))
    assert state(silent)[0] == "stopped (hang), wants to go on"
    (folder / "REQUEUE").unlink()
    assert now({"event": "stop", "time_s": 52.0, "step": 51, "reason": "SIGTERM"}) == (
        "stopped (SIGTERM), wants to go on"
    )
    assert now({"event": "failure", "time_s": 53.0, "reason": "UserError: full"}) == (
        "failed: UserError: full"
    )
    assert now({"event": "end", "time_s": 54.0, "step": 100}) == "complete"


def test_run_that_begins_has_a_picture_and_a_folder_that_is_none_does_not(tmp_path, capsys):
    with pytest.raises(UserError, match="is no run folder"):
        top(tmp_path, once=True)
    (tmp_path / "config.yaml").write_text("")
    top(tmp_path, once=True)
    assert "no step is logged yet" in capsys.readouterr().out


def test_numbers_are_short():
    assert [short(n) for n in (7, 1500, 12_345_678, 1.719e12, None)] == [
        "7", "1.5K", "12.3M", "1.72T", "-",
    ]  # fmt: skip
    assert sparkline([1, 2, 3, 8], 4) == "▁▂▃█"
    assert sparkline(list(range(100)), 10)[0] == "▁"
    assert len(sparkline(list(range(101)), 10)) <= 10
    assert sparkline([2.0, 2.0], 9) == "▁▁"
