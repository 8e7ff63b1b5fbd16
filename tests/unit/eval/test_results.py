import re

import numpy as np
import pytest

from restomod.eval.leaderboard import curves, write_leaderboard
from restomod.eval.results import TaskScores, against, markdown, summarise


@pytest.fixture
def task():
    generator = np.random.default_rng(0)
    scores = {
        name: {"mrr": generator.random((seeds, 80)) * top, "recall_at_1": np.zeros((seeds, 80))}
        for name, seeds, top in (
            ("step-1", 1, 0.5),
            ("step-1, whitened", 1, 0.6),
            ("step-2", 1, 0.9),
            ("step-2, whitened", 1, 1.0),
            ("random init", 3, 0.4),
            ("random init, whitened", 3, 0.6),
            ("TF-IDF", 1, 1.0),
        )
    }
    about = {"documents": 80, "distributions": ["a", "b"], "rule": "held out", "chance": 0.05}
    return TaskScores("search", "retrieval", about, ["a"] * 40 + ["b"] * 40, scores)


@pytest.fixture
def results(task):
    summary = summarise(task, "random init")
    models = [{"name": f"step-{n}", "path": "p", "slots": n * 1000} for n in (2, 1)]
    return {
        "suite": "mine <b>",
        "description": "For a test.",
        "note": "",
        "command": "restomod eval r --suite 'a & b'",
        "models": models,
        "systems": {name: {"path": "p"} for name in task.scores},
        "tasks": {"search": summary, "gone": {"kind": "mteb", "skipped": "no folder"}},
        "versions": {"python": "3"},
    }


def test_a_treated_system_is_compared_with_the_baseline_treated_alike(task):
    systems = summarise(task, "random init")["systems"]
    assert systems["step-2, whitened"]["difference"]["from"] == "random init, whitened"
    assert systems["step-2"]["difference"]["from"] == "random init"
    assert "difference" not in systems["random init"]
    ours, theirs = (task.scores[n]["mrr"].mean() for n in ("step-2", "random init"))
    assert systems["step-2"]["difference"]["mean"] == pytest.approx(ours - theirs)
    low, high = systems["step-2"]["interval_95"]
    assert low < systems["step-2"]["scores"]["mrr"] < high
    assert len(systems["random init"]["per_seed"]) == 3
    assert against("a, probe", "b", ["b"]) == "b"


def test_the_table_shows_scores_errors_and_what_was_left_out(results):
    text = markdown(results)
    assert "    restomod eval r --suite 'a & b'\n" in text
    row = next(line for line in text.splitlines() if line.startswith("| step-2 |"))
    assert re.search(r"\| \+0\.\d{3} ± 0\.\d{3} \(0\.\d{3}\) from random init \| < 0\.001 \|", row)
    assert "80 documents; from 2 packages: held out; chance 0.050" in text
    assert "## gone\n\nLeft out: no folder" in text


def test_checkpoints_are_drawn_over_tokens_and_baselines_as_levels(results, tmp_path):
    moving, constant = curves(results["tasks"]["search"], results["models"])
    assert set(moving) == {"checkpoints", "whitened"}
    assert [slots for slots, _ in moving["checkpoints"]] == [1000, 2000]
    assert set(constant) == {"random init", "random init, whitened", "TF-IDF"}
    page = write_leaderboard(results, tmp_path / "leaderboard.html").read_text()
    assert "Suite mine &lt;b&gt;" in page
    assert page.count("<svg") >= 1
    assert not re.search(r"(?:src|href)=[\"']?http", page)
    assert re.search(r"<td>step-1</td><td>1K</td><td>0\.\d{3} ± 0\.\d{3}</td>", page)
