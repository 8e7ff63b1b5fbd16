import json
import sys
from argparse import Namespace

import pytest

from benchmarks import record
from benchmarks.__main__ import run
from benchmarks.parts import Part


@pytest.fixture
def options(tmp_path):
    return Namespace(json=tmp_path / "kept" / "a.json", quick=True)


def test_what_is_said_is_kept(options, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--json", str(options.json), "--rounds", "3"])
    with record.Report(options) as report:
        table = report.table("of two", "who", "tokens/s")
        table.row("we", "12")
        report.figures["tokens/s"] = 12.3456789
    said = capsys.readouterr().out
    kept = json.loads(options.json.read_text())
    assert kept["tables"] == [
        {"title": "of two", "columns": ["who", "tokens/s"], "rows": [["we", "12"]]}
    ]
    assert kept["figures"] == {"tokens/s": 12.346}
    assert kept["quick"] is True
    assert kept["command"].endswith(" --rounds 3")
    for words in ("of two", "tokens/s", kept["commit"], kept["date"], kept["machine"]["cpu"]):
        assert words in said


def test_a_benchmark_that_fails_keeps_nothing(options):
    def fail():
        with record.Report(options) as report:
            report.figures["tokens/s"] = 1.0
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert not options.json.exists()


def test_a_row_has_as_many_cells_as_its_table(options):
    with pytest.raises(AssertionError), record.Report(options) as report:
        report.table("of two", "who", "tokens/s").row("we")


def test_own_work_is_not_others(options, monkeypatch):
    busy, own = iter([10.0, 18.0]), iter([1.0, 5.0])
    monkeypatch.setattr(record, "busy_s", lambda: next(busy))
    monkeypatch.setattr(record, "own_s", lambda: next(own))
    clock = iter([0.0, 8.0])
    monkeypatch.setattr(record.time, "perf_counter", lambda: next(clock))
    with record.Report(options):
        pass
    kept = json.loads(options.json.read_text())
    assert (kept["seconds"], kept["cpu_s"], kept["others_cores"]) == (8.0, 4.0, 0.5)


def test_a_part_that_fails_says_why_in_its_result(tmp_path, capsys):
    kept = tmp_path / "broken.json"
    kept.write_text('{"figures": {"of an earlier run": 1}}')
    assert run(Part("broken", "benchmarks.nowhere", ("--rounds", "1")), tmp_path, False)[1] is False
    result = json.loads(kept.read_text())
    assert "No module named benchmarks.nowhere" in result["failed"]
    assert "figures" not in result
    assert result["command"] == "python -m benchmarks.nowhere --rounds 1"
    assert "No module named" in capsys.readouterr().out
