"""Several runs on one page: who is shown how, and what is said of what is broken."""

import json
import re
from pathlib import Path

import pytest

from restomod.errors import UserError
from restomod.tools.report.report import report
from tests.unit.tools.report.test_run import (
    CONFIG,
    eval_line,
    parsed,
    run_folder,
    text_of,
    train_line,
)


def run(folder: Path, steps: int = 40, lr: float = 1e-3, loss: float = 4.0, **domains: float):
    lines = [train_line(s, lr=lr, loss=loss + 1 / s, mask_rate=0.3) for s in range(1, steps + 1)]
    lines.append(eval_line(steps, all=loss, **domains))
    config = CONFIG.replace("small-run", folder.name) + f"optimizer: {{lr: {lr}}}\n"
    return run_folder(folder, lines, config)


def row(page: str, name: str) -> list[str]:
    """Return the cells of the first row that begins with a name."""
    rows = re.findall(r"<tr>(<td>.*?)</tr>", page)
    cells = [re.findall(r"<td>(.*?)</td>", each) for each in rows]
    [first, *_] = [[text_of(c).strip() for c in each] for each in cells if name in each[0]]
    return first


def labels(page: str, figure: str) -> list[str]:
    [plot] = re.findall(rf'aria-labelledby="{figure}-tokens-t.*?</svg>\s*</svg>', page, re.S)
    return re.findall(r'data-label="([^"]*)"', plot)


@pytest.fixture
def page(tmp_path: Path) -> str:
    one = run(tmp_path / "one", code=3.5)
    two = run(tmp_path / "two", steps=20, lr=2e-3, loss=5.0, prose=4.5)
    return report([one, two], None).read_text()


def test_every_run_has_a_row_a_curve_and_its_colour(page: str) -> None:
    assert row(page, "one") == [
        "one",
        "unfinished",
        "40",
        "40K",
        "20.0%",
        "1 min 20 s",
        "4.107",
        "4.000",
        "500",
        "43.2%",
        "1.50%",
        "99.00%",
        "0",
    ]
    assert row(page, "two")[2:4] == ["20", "20K"]
    for figure in ("loss", "accuracy", "lr", "tokens-per-s", "mfu", "packing-efficiency"):
        assert set(labels(page, figure)) == {"one", "two"}
    assert '<path class="c1" data-label="one"' in page
    assert '<path class="c2" data-label="two"' in page
    assert '<span class="key c2"></span>two' in page


def test_runs_of_other_domains_are_named_where_they_have_no_curve(page: str) -> None:
    titles = re.findall(r"<h3>(Evaluation loss.*?)</h3>", page)
    assert titles == [f"Evaluation loss, {d}" for d in ("all domains", "code", "prose")]
    assert labels(page, "eval-1") == ["one"]
    assert "Not evaluated by two." in page
    assert "Not evaluated by one." in page


def test_views_and_probes_have_figures_where_they_were_evaluated(tmp_path: Path) -> None:
    line = eval_line(1, all=4.0)
    line["views"] = {"mask_0.15": {"code": {"loss": 9.0}, "all": {"loss": 3.0}}, "odd": 3}
    line["probes"] = {"topic": {"accuracy": 0.75, "majority": 0.5}}
    probed = run_folder(tmp_path / "probed", [train_line(1), line], config="")
    page = report([probed], None).read_text()
    assert re.search(r'id="views".*?<b data-value="mask_0.15">3.000</b>', page, re.S)
    assert re.search(r'id="probes".*?<b data-value="topic">75.0%</b>', page, re.S)
    page = report([probed, run(tmp_path / "one")], None).read_text()
    titles = re.findall(r"<h3>(Evaluation loss.*?|Accuracy of.*?)</h3>", page)
    assert titles == [
        "Evaluation loss, all domains",
        "Evaluation loss, mask_0.15",
        "Accuracy of probe topic",
    ]


def test_schedules_that_never_differ_are_said_and_not_drawn(page: str) -> None:
    assert "Mask rate 30% throughout, in all runs." in page
    assert '<figure id="mask-rate"' not in page
    assert '<figure id="lr"' in page


def test_keys_that_differ_are_shown_but_for_the_name(page: str) -> None:
    text = text_of(page)
    assert "key one two optimizer.lr 0.001 0.002" in text
    assert "run_name" not in text.partition("What differs between")[2]


def test_mixtures_asked_and_drawn_stand_side_by_side(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one"), tmp_path / "other"
    run_folder(other, [train_line(1, mixture={"books": 1.0})], config="run_name: other\n")
    text = text_of(report([one, other], None).read_text())
    assert "run code prose science books" in text
    assert "one 50.0% → 50.0% 25.0% → 25.0% 25.0% → 25.0% other &ndash; → 100.0%" in text


def test_table_has_a_value_where_a_run_reaches_and_none_where_it_does_not(page: str) -> None:
    [table] = re.findall(r'aria-label="Training loss, as a table">(.*?)</table>', page, re.S)
    one, two = re.findall(r"<tr><td>(.*?)</tr>", table)
    cells = [re.sub(r"<[^>]*>", " ", each).split() for each in (one, two)]
    assert len(cells[0]) == 1 + 5 + 3
    assert len(cells[1]) == 1 + 3 + 3  # it ended at half the other's slots
    assert cells[0][-3:] == ["4.025", "5.000", "4.026"]  # the last as drawn: smoothed
    assert float(cells[0][3]) == pytest.approx(4 + 1 / 20, abs=0.01)
    assert text_of(table).split()[:4] == ["run", "at", "6.67K", "slots"]


def test_page_is_wellformed_and_refers_to_nothing_outside(page: str) -> None:
    parser = parsed(page)
    assert len(parser.ids) == len(set(parser.ids))
    assert not re.search(r"\bsrc=|url\(|@import|https?:", page)
    assert all(target in parser.ids for target in re.findall(r'href="#([^"]*)"', page))


def test_a_run_given_twice_is_shown_once_and_said(tmp_path: Path, monkeypatch) -> None:
    run(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    page = report([Path("one"), Path("one/../one"), tmp_path / "one"], Path("p.html")).read_text()
    assert page.count("given more than once") == 2
    assert "1 run side by side." in page
    parsed(page)


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [run(tmp_path / "a" / "same"), run(tmp_path / "b" / "same")]
    page = report(folders, tmp_path / "p.html").read_text()
    assert set(labels(page, "loss")) == {f"same ({folder})" for folder in folders}


def test_what_is_broken_or_missing_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    good, bare = run(tmp_path / "good"), run_folder(tmp_path / "bare", [], config="")
    damaged = run_folder(tmp_path / "damaged", [train_line(1)], config="phases: [{", tail="{")
    (damaged / "evaluation.json").write_text("{")
    (tmp_path / "empty").mkdir()
    odd = run_folder(tmp_path / "odd", [train_line(1)], "phases: [{name: [3]}, 7]\nmodel: 3\n")
    page = report([good, bare, damaged, tmp_path / "empty", odd], None).read_text()
    parsed(page)
    text = text_of(page)
    assert f"{tmp_path / 'empty'}: left out, for it is no run folder" in text
    assert "bare: No training step has been logged yet." in text
    assert "damaged: config.yaml is not valid YAML" in text
    assert "damaged: evaluation.json could not be read" in text
    assert "damaged: The last line of metrics.jsonl is cut short" in text
    assert set(labels(page, "loss")) == {"good", "damaged", "odd"}


def test_names_are_inert(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x>"
    for number in (1, 2):
        lines = [train_line(1, phase=evil), eval_line(1, **{evil: 3.0})]
        lines.append({"event": evil, evil: {evil: evil}})
        lines.append({"event": "samples", "samples": [{"text": evil, "expected": evil}]})
        config = f"run_name: {json.dumps(evil + str(number))}\n{json.dumps(evil)}: {number}\n"
        run_folder(tmp_path / str(number), lines, config, {"domains": {evil: {"loss": 1.0}}})
    parser = parsed(report([tmp_path / "1", tmp_path / "2"], None).read_text())
    assert parser.tags.count("script") == 1
    assert "img" not in parser.tags


def test_how_a_run_ended_is_its_state(tmp_path: Path) -> None:
    endings = {"end": "complete", "stop": "stopped", "failure": "failed", "checkpoint": None}
    folders = []
    for event in endings:
        lines = [train_line(1), {"event": event, "step": 1, "time_s": 2.0}]
        folders.append(run_folder(tmp_path / event, lines, config=""))
    page = report(folders, None).read_text()
    for event, state in endings.items():
        assert row(page, event)[1] == (state or "unfinished")


def test_resumes_are_marked_in_their_runs_colour(tmp_path: Path) -> None:
    lines = [*map(train_line, range(1, 6)), {"event": "resume", "step": 3, "time_s": 11.0}]
    resumed = run_folder(tmp_path / "resumed", [*lines, *map(train_line, range(4, 9))], config="")
    page = report([run(tmp_path / "one"), resumed], None).read_text()
    assert 'class="resume c2" x1="10.00%"' in page  # step 4 of 40
    assert "a resume, in its run" in page


def test_many_runs_have_dashes_of_their_own_and_few_points(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"run-{n:02d}", steps=400) for n in range(20)]
    page = report(folders, None).read_text()
    assert len(re.findall(r'class="(c\d(?: d\d)?)" data-label="run-\d\d"', page)) > 0
    assert len(set(re.findall(r'class="key (c\d(?: d\d)?)"', page))) == 20
    assert len(page) < 3_000_000


def test_passages_in_common_stand_side_by_side(tmp_path: Path) -> None:
    folders = []
    for name, token in (("one", " cat"), ("two", " dog")):
        samples = [
            {"text": "a [MASK]", "expected": "cat", "predictions": [{"token": token}]},
            {"text": f"only {name}", "predictions": [{"token": "x"}]},
        ]
        lines = [train_line(1), {"event": "samples", "step": 1, "samples": samples}]
        folders.append(run_folder(tmp_path / name, lines, config=f"run_name: {name}\n"))
    page = report(folders, None).read_text()
    [card] = re.findall(r"<article>(.*?)</article>", page, re.S)
    said = "a [MASK] one cat (right) 0.0% two dog 0.0% expected cat"
    assert " ".join(text_of(card).split()) == said


def test_where_the_page_goes(tmp_path: Path) -> None:
    one, two = run(tmp_path / "runs" / "one"), run(tmp_path / "runs" / "two")
    other = run(tmp_path / "other")
    assert report([one], None) == one / "report.html"
    assert report([one], tmp_path / "x.html") == tmp_path / "x.html"
    assert report([one, two], None) == tmp_path / "runs" / "report.html"
    with pytest.raises(UserError, match="say with --out"):
        report([one, other], None)
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        report([one, tmp_path / "nowhere"], None)
    with pytest.raises(UserError, match="no run folder among"):
        report([tmp_path, tmp_path / "runs"], tmp_path / "x.html")
