"""docs/performance.md is what the results say, and its targets are DESIGN's."""

import json
import re

import pytest

from benchmarks import page
from benchmarks.parts import PARTS, chosen
from benchmarks.record import ROOT
from benchmarks.targets import TARGETS, Target

DESIGN = {
    "training, documents of about 300 tokens": ("at least 7x", "at least 5x"),
    "training, documents of 1,024 tokens": ("at least 2.5x", "at least 1.6x"),
    "FLOP/s of a step's linear layers, documents of about 300 tokens": (
        "at least 60 %",
        "at least 75 %",
    ),
    "FLOP/s of a step's linear layers, documents of 1,024 tokens": (
        "at least 60 %",
        "at least 75 %",
    ),
    "a token of a document of 8,192": ("at most 1.25x", "at most 1.25x"),
    "rows of 27 or more mean chunks are full": ("at least 99.9 %",),
    "rows of every shipped recipe are full": ("at least 99 %",),
    "packing, one core": ("at least 50 M tokens/s",),
    "shards to masked, packed batches, one worker": ("at least 10 M tokens/s",),
    "resume at step 1,000,000": ("at most 1.1x",),
    "start-up, 2 x 10^9 documents: time": ("at most 10 s",),
    "start-up, 2 x 10^9 documents: memory": ("at most 500 MB",),
    "optimizer's step": ("at most 1.6x", "at most 1.6x"),
}
"""Section 6: what, and the bounds, the smaller model's first."""
RESULT = {
    "command": "python -m benchmarks.data.packing",
    "commit": "1234567",
    "date": "2026-01-02",
    "quick": False,
    "machine": {"cpu": "Some CPU", "cores": 2, "memory_gb": 8, "device": "", "versions": {}},
    "seconds": 3.0,
    "cpu_s": 2.0,
    "others_cores": 0.0,
    "figures": {"full, 27 documents a row": 0.9991, "full, shipped recipes": 0.98},
    "tables": [{"title": "of nothing", "columns": ["a", "b"], "rows": [["x", "1"]]}],
}


@pytest.mark.parametrize("file", page.PAGES, ids=lambda file: file.stem)
def test_a_page_is_what_the_results_say(file):
    text = file.read_text()
    assert page.rendered(text, page.load()) == text, "python -m benchmarks.page writes it anew"


def test_every_part_has_its_place_on_the_page_and_no_result_is_a_quick_one():
    places = set(re.findall(r"<!-- begin ([\w-]+) -->", page.PAGE.read_text()))
    assert places == {"targets", "gpu"} | {part.name for part in PARTS}
    assert [name for name, result in page.load().items() if result.get("quick")] == []


def test_the_targets_are_designs():
    found = {what: [] for what in DESIGN}
    for target in TARGETS:
        (what,) = (what for what in DESIGN if target.what.startswith(what))
        found[what].append(target.text)
    assert found == {what: list(bounds) for what, bounds in DESIGN.items()}


def test_every_target_is_of_a_part_that_measures_it():
    parts = {part.name for part in PARTS}
    results = page.load()
    for target in TARGETS:
        assert target.part in parts
        figures = results.get(target.part, {}).get("figures")
        if figures is not None:
            wanted = {target.figure, *target.peer_figures}
            assert {figure.name for figure in wanted} <= figures.keys()


def rows(results) -> dict[str, list[str]]:
    lines = page.targets(results).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: others for first, *others in cells}


def test_missed_failed_and_never_run_are_marked():
    failed = {**RESULT, "failed": "MemoryError"}
    del failed["figures"], failed["tables"]
    found = rows({"packing": RESULT, "loading": failed})
    assert found["rows of 27 or more mean chunks are full"][1:3] == ["99.910%", "reached"]
    assert found["rows of every shipped recipe are full"][1:3] == ["98.000%", "**missed**"]
    assert found["packing, one core"][1:3] == ["-", "**not run**"]
    assert found["shards to masked, packed batches, one worker"][1:3] == ["-", "**failed**"]
    assert found["resume at step 1,000,000"][1:3] == ["-", "**not run**"]
    assert "**Failed**: MemoryError" in page.part("loading", {"loading": failed})
    assert "Not run" in page.part("resume", {})


def test_machine_commit_and_what_disturbed_are_said():
    row = rows({"packing": {**RESULT, "others_cores": 1.26}})["packing, one core"]
    assert row[4:] == [
        "2 cores, Some CPU, **others kept 1.3 busy**",
        "`1234567`, 2026-01-02",
        "`packing.txt`",
    ]
    assert "quick" in page.where({**RESULT, "quick": True})


@pytest.mark.parametrize(("at_least", "reached"), [(True, [False, True]), (False, [True, False])])
def test_a_bound_has_a_direction(at_least, reached):
    figure = TARGETS[0].figure
    target = Target("", "", figure, 2.0, at_least)
    assert [target.reached({figure.name: x}) for x in (1.9, 2.1)] == reached
    assert target.reached({figure.name: 2.0})


def test_on_gpus_an_estimate_stands_beside_what_was_never_run():
    results = page.load()
    never = {name: result for name, result in results.items() if name != "gpu-step"}
    assert page.on_gpus(never).startswith("Nothing of this was run on a GPU.")
    assert page.on_gpus(never).count("**never run on a GPU**") == 2
    device = {**RESULT["machine"], "device": "NVIDIA H100"}
    step = {**RESULT, "machine": device, "figures": {"150m, full, compiled: tokens/s": 4.2e5}}
    base = page.on_gpus({**never, "gpu-step": step}).splitlines()[4]
    assert "420 k tokens/s, NVIDIA H100" in base
    assert "312 k tokens/s" in base


def test_text_around_tables_stays_and_a_table_that_cannot_be_made_too():
    text = "before\n\n<!-- begin packing -->\nold\n<!-- end -->\n\nafter\n"
    new = page.rendered(text, {"packing": RESULT})
    assert new.startswith("before\n\n<!-- begin packing -->\n\n`python -m benchmarks.data.packing`")
    assert new.endswith("| x | 1 |\n\n<!-- end -->\n\nafter\n")
    scale = "<!-- begin scale at rest -->\nas it was\n<!-- end -->"
    assert page.rendered(scale, {}) == scale


def test_parts_are_chosen_by_name_or_group():
    assert [part.name for part in chosen(["resume", "prepare"])] == ["resume", "prepare"]
    assert {part.name for part in chosen(["data"])} == {
        "packing",
        "loading",
        "start-up",
        "resume",
        "shuffle",
    }
    assert {part.name for part in chosen(["gpu"]) if not part.gpu} == {"roofline"}
    assert not any(part.gpu for part in chosen(["training"]))
    with pytest.raises(ValueError, match="no such part: nonsense; there is"):
        chosen(["nonsense", "data"])


def test_logs_and_figures_lie_side_by_side():
    for name, result in page.load().items():
        log = (page.RESULTS / f"{name}.txt").read_text()
        assert result["command"].split(" -m ")[1] in log
        assert json.dumps(str(ROOT)) not in json.dumps(result)
