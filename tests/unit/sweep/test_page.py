import re

import pytest

from restomod.sweep import page
from restomod.sweep.file import Metric, SweepFile
from restomod.sweep.page import write_sweep_page
from restomod.sweep.parallel import parallel_coordinates
from restomod.sweep.space import Parameter
from restomod.sweep.study import DONE, FAILED, STOPPED, Trial
from restomod.tools.record.metrics_log import read_log
from tests.unit.tools.report.test_run import parsed, run_folder, train_line

SWEEP = SweepFile(
    name="s",
    method="random",
    description="<b>What</b>",
    metric=Metric("eval/all/loss"),
    parameters={
        "optimizer.lr": Parameter(min=1e-4, max=1e-2, distribution="log_uniform_values"),
        "model.norm": Parameter(values=["layernorm", "rmsnorm"]),
        "phases.pretrain.batch_rows": Parameter(values=[4, 1, 2]),
        "seed": Parameter(value=3),
    },
)


def trial(number, state, value, lr, norm, rows, note=""):
    values = {
        "optimizer.lr": lr,
        "model.norm": norm,
        "phases.pretrain.batch_rows": rows,
        "seed": 3,
    }
    return Trial(number, values, state, value, note, {"steps": 24, "time_s": 3.0})


TRIALS = [
    trial(0, DONE, 5.0, 1e-4, "layernorm", 1),
    trial(1, STOPPED, 7.0, 1e-3, "rmsnorm", 2),
    trial(2, DONE, 4.0, 1e-2, "layernorm", 4),
    trial(3, FAILED, None, 1e-3, "layernorm", 1, "the <disk> is full"),
]


def lines(svg):
    """Return the points of every trial's line, by number."""
    found = re.findall(r'id="line-(\d+)".*?<path d="M([^"]*)"', svg)
    return {
        int(number): [tuple(map(float, point.split(","))) for point in points.split("L")]
        for number, points in found
    }


def test_a_line_meets_each_axis_at_its_trials_value():
    drawn = lines(parallel_coordinates(SWEEP, TRIALS))
    assert drawn.keys() == {0, 1, 2}  # the one without a value is in the table alone
    xs = [x for x, _ in drawn[0]]
    assert xs == pytest.approx([0, 333.3, 666.7, 1000], abs=0.1)
    lr = {number: points[0][1] for number, points in drawn.items()}
    assert lr[0] > lr[1] > lr[2]
    assert lr[0] - lr[1] == pytest.approx(lr[1] - lr[2], abs=0.2)  # a logarithmic axis
    assert [drawn[n][1][1] for n in (0, 1)] == [0, 1000]
    assert [drawn[n][2][1] for n in (0, 1, 2)] == [1000, 500, 0]  # numbers from low to high
    loss = {number: points[3][1] for number, points in drawn.items()}
    assert loss[1] - loss[0] == pytest.approx(2 * (loss[0] - loss[2]), abs=0.2)


def test_the_page_is_whole_by_itself(tmp_path):
    page = write_sweep_page(SWEEP, TRIALS, tmp_path).read_text()
    ids = parsed(page).ids
    assert len(ids) == len(set(ids))
    assert {f"row-{n}" for n in range(4)} <= set(ids)
    assert "&lt;b&gt;What" in page
    assert "the &lt;disk&gt; is full" in page
    assert not re.search(r"https?://|src=", page)
    assert "2 of 4 trials complete; best: 002, eval/all/loss 4.0000" in page
    assert 'class="trial stopped"' in page


def test_a_page_without_results_has_its_table(tmp_path):
    page = write_sweep_page(SWEEP, TRIALS[3:], tmp_path).read_text()
    assert "row-3" in page
    assert "<svg" not in page


def test_trials_have_curves_and_the_best_have_names(tmp_path):
    trials = [trial(n, DONE, 10.0 - n, 1e-3, "rmsnorm", 1) for n in range(10)]
    for each in trials[1:]:
        run_folder(tmp_path / SWEEP.run_name(each.number), [train_line(1), train_line(2)])
    page = write_sweep_page(SWEEP, trials, tmp_path).read_text()
    parsed(page)
    [plot] = re.findall(r'aria-labelledby="loss-tokens-t.*?</svg>\s*</svg>', page, re.S)
    assert re.findall(r'data-label="(\d+)"', plot) == [f"{n:03d}" for n in range(2, 10)]
    assert re.findall(r'class="rest trial-1".*?<title>(.*?)</title>', plot) == ["001"]
    assert '<span class="key c1 trial-9"></span>009' in page
    assert "<td>000</td>" in page  # it has not trained


def test_logs_are_read_again_only_when_they_have_grown(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(page, "read_log", lambda path: reads.append(path) or read_log(path))
    folder = run_folder(tmp_path / SWEEP.run_name(0), [train_line(1)])
    for _ in range(3):
        write_sweep_page(SWEEP, TRIALS, tmp_path)
    assert len(reads) == 1
    run_folder(folder, [train_line(1), train_line(2)])
    assert "Table" in write_sweep_page(SWEEP, TRIALS, tmp_path).read_text()
    assert len(reads) == 2
