import json
import math

from restomod.sweep.readings import Readings


def evaluation(step, loss):
    domains = {"all": {"loss": loss, "accuracy": 0.1}, "prose": {"loss": 2 * (loss or 0)}}
    return json.dumps({"event": "eval", "time_s": step / 2, "step": step, "domains": domains})


def train(step, loss):
    return json.dumps({"event": "train", "time_s": step / 2, "step": step, "loss": loss})


def test_values_come_as_they_are_written(tmp_path):
    log = tmp_path / "metrics.jsonl"
    readings = Readings(tmp_path, "eval/prose/loss")
    readings.read()
    assert readings.values == []
    log.write_text(f"{train(1, 9.0)}\n{evaluation(1, 4.0)}\n{evaluation(2, 3.0)[:20]}")
    readings.read()
    assert readings.values == [8.0]
    log.write_text(f"{train(1, 9.0)}\n{evaluation(1, 4.0)}\n{evaluation(2, 3.0)}\nnot JSON\n")
    readings.read()
    assert readings.values == [8.0, 6.0]
    assert (readings.step, readings.time_s) == (2, 1.0)


def test_a_log_that_a_resume_took_back_is_read_anew(tmp_path):
    log = tmp_path / "metrics.jsonl"
    readings = Readings(tmp_path, "train/loss")
    log.write_text("".join(f"{train(n, 10.0 - n)}\n" for n in range(1, 6)))
    readings.read()
    assert readings.values == [9.0, 8.0, 7.0, 6.0, 5.0]
    shorter = tmp_path / "metrics.jsonl.tmp"
    shorter.write_text("".join(f"{train(n, 10.0 - n)}\n" for n in range(1, 3)))
    shorter.replace(log)
    readings.read()
    assert (readings.values, readings.step) == ([9.0, 8.0], 2)


def test_what_is_no_number_is_nan_and_what_is_absent_is_no_reading(tmp_path):
    lines = [evaluation(1, None), train(2, 1.0), json.dumps({"event": "eval", "step": 3})]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    readings = Readings(tmp_path, "eval/all/loss")
    readings.read()
    assert len(readings.values) == 1
    assert math.isnan(readings.values[0])
