import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_rel

from benchmarks.ablations import arms, results, runs
from benchmarks.ablations.arms import ARMS, COMPARISONS, SMALL
from benchmarks.ablations.corpus import DOMAINS, cut, joined
from restomod.config import Recipe
from restomod.data.mlm import mask_rate
from restomod.errors import UserError
from restomod.optim.schedules import step_factor
from restomod.recipe import flatten, load_recipe
from restomod.tools.plan.plan import plan

ROOT = Path(__file__).parents[3]
SLOTS = 102_400
SLOTS_OF_A_PHASE = [
    f"phases.pretrain.{key}" for key in ("slots", "schedule.warmup", "schedule.decay")
]


def recipe(arm: arms.Arm, tmp_path) -> Recipe:
    weights = tmp_path / "weights" if arm.tiled else None
    path, *overrides = arms.words(arm, 3, SLOTS, "4e-3", tmp_path, "x", weights)
    return load_recipe([path], overrides)


def test_a_difference_is_that_of_students_t_over_paired_seeds():
    ours, theirs = {1: 4.31, 2: 4.52, 3: 4.40, 4: 4.47}, {1: 4.20, 2: 4.49, 3: 4.33, 4: 4.41}
    found = results.difference(ours, theirs)
    interval = ttest_rel(list(ours.values()), list(theirs.values())).confidence_interval(0.95)
    assert found.mean - found.half == pytest.approx(interval.low)
    assert found.mean + found.half == pytest.approx(interval.high)
    assert results.difference({1: 1.0, 2: 2.0, 3: 3.0}, dict.fromkeys((1, 2, 3), 0.0)).half == (
        pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    )


def test_only_seeds_that_both_have_are_paired():
    found = results.difference({1: 5.0, 2: 4.0, 3: 9.0}, {2: 3.0, 1: 4.5, 7: 0.0})
    assert found.by_seed == {1: 0.5, 2: 1.0}
    assert results.signed(results.difference({1: 5.0}, {1: 4.5})) == "+0.500, one seed"
    assert results.signed(results.difference({1: 5.0}, {2: 4.5})) == "no seed in common"


def test_the_table_holds_means_and_paired_differences():
    of = {"base": {1: 4.0, 2: 4.4}, "linear": {1: 4.1, 2: 4.7}, "cosine": {1: 3.9, 2: 4.3001}}
    _, _, base, linear, cosine = results.table(of).splitlines()
    assert base == "| How the learning rate falls | the base | 2 | 4.200 |  |"
    # Differences 0.1 and 0.3: 0.2 and 12.706 standard errors of 0.1.
    assert linear == "|  | linear decay | 2 | 4.400 | +0.200 (-1.071 to +1.471) |"
    assert cosine == "|  | cosine decay | 2 | 4.100 | **-0.100 (-0.101 to -0.099)** |"


def test_a_loss_is_the_mean_over_predicted_tokens_of_whole_documents():
    domains = {
        "code": {"loss": 4.0, "masked_tokens": 300},
        "prose": {"loss": 5.0, "masked_tokens": 100},
        "joined_code": {"loss": 7.0, "masked_tokens": 10},
        "all": {"loss": 1.0, "masked_tokens": 410},
    }
    assert runs.loss(domains) == 4.25
    assert runs.loss(domains, "joined") == 7.0


@pytest.mark.parametrize("arm", [*ARMS.values(), SMALL], ids=lambda arm: arm.name)
def test_an_arm_differs_from_the_base_in_what_it_says_only(arm, tmp_path):
    base, mine = flatten(recipe(ARMS["base"], tmp_path)), flatten(recipe(arm, tmp_path))
    told = [word.split("=")[0] for word in arm.changes]
    differing = {key for key in base.keys() | mine.keys() if base.get(key) != mine.get(key)}
    assert all(any(key.startswith(word) for key in differing) for word in told)
    told += ["evaluation."] + ["init.weights"] * arm.tiled
    told += SLOTS_OF_A_PHASE if arm.slots < 1 or arm.decay != arms.DECAY else []
    assert [key for key in differing if not key.startswith(tuple(told))] == []
    assert all(word.startswith("evaluation.") for word in arm.measures)
    assert not any(word.startswith("evaluation.") for word in arm.changes)
    assert mine["evaluation.mask_rate"] == 0.15


def test_every_arm_is_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arm in (*ARMS.values(), SMALL):
        steps = math.ceil(round(arm.slots * SLOTS) / 1024)
        assert f"{steps} steps of 1,024 slots" in plan(recipe(arm, tmp_path), 1)


def test_schedules_follow_the_length_of_a_run(tmp_path):
    (phase,) = recipe(ARMS["mask_30_to_15"], tmp_path).phases
    assert [mask_rate(phase.mask, s) for s in (0, SLOTS // 2, SLOTS)] == pytest.approx(
        [0.3, 0.225, 0.15]
    )
    (whole,) = recipe(ARMS["cosine_whole"], tmp_path).phases
    factors = {name: recipe(ARMS[name], tmp_path).phases[0] for name in ("base", "linear")}
    assert step_factor(52, whole) == pytest.approx(0.5, abs=0.02)
    assert step_factor(59, factors["base"]) == step_factor(59, factors["linear"]) == 1
    assert step_factor(70, factors["base"]) < step_factor(70, factors["linear"])


def test_comparisons_name_arms_and_every_arm_is_compared():
    assert {name for comparison in COMPARISONS for name in comparison.arms} == set(ARMS)


def test_documents_are_joined_in_whole_with_separators_between():
    documents = [np.full(length, length, np.uint16) for length in (3, 5, 4)]
    pieces = list(joined(documents, separator=1, length=6))
    assert [len(piece) for piece in pieces] == [6, 6, 2]
    stream = np.concatenate(pieces)
    bounds = np.flatnonzero(stream == 1)
    between = np.split(stream, bounds)
    assert len(bounds) == 2
    assert sorted(int(part[-1]) for part in between) == [3, 4, 5]
    assert [len(piece) for piece in cut(documents, 4)] == [3, 4, 1, 4]
    assert all(np.unique(piece).size == 1 for piece in cut(documents, 4))


def test_runs_come_after_what_they_need_and_each_once():
    order = [run.name for run in runs.all_runs([11, 12], SLOTS)]
    assert len({*order}) == len(order) == 10 + 2 * (len(ARMS) + 1)
    rates = [f"tune-stable_adamw-{rate}" for rate in arms.RATES["stable_adamw"]]
    assert order[:5] == [*rates, "base-11", "base-12"]
    for run in runs.all_runs([11, 12], SLOTS):
        assert all(order.index(need) < order.index(run.name) for need in run.needs)


def test_a_run_waits_for_what_it_needs_and_falls_away_with_it(tmp_path):
    tunings = runs.tuning("muon", SLOTS)
    needs = tuple(run.name for run in tunings)
    muon = runs.Run("muon-11", ARMS["muon"], 11, SLOTS, "", needs)
    queue = runs.Queue([muon, *tunings], tmp_path)
    assert [queue.next() for _ in tunings] == tunings
    queue.end(tunings[2], 0)
    queue.end(tunings[3], 0)
    queue.end(tunings[0], 0)
    queue.end(tunings[1], 1)
    assert queue.next() is None


def write_run(folder, run: runs.Run, loss: float) -> None:
    folder.mkdir(parents=True)
    path, *overrides = runs.run_words(run, folder.parent)
    config = dataclasses.asdict(load_recipe([path], overrides))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    domains = {d: {"loss": loss, "masked_tokens": 10} for d in DOMAINS}
    lines = [
        {"event": "start", "model": {"parameters": 7}, "git": {"commit": "0123456789"}},
        {"event": "train", "real_tokens": 90, "masked_tokens": 30},
        {"event": "eval", "tokens": 100, "time_s": 1.0, "domains": domains},
        {"event": "end"},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_an_arm_has_the_rate_that_ended_lowest_and_is_not_trained_again(tmp_path):
    for run, loss in zip(runs.tuning("muon", SLOTS), (4.5, 4.6, 4.4, 4.7), strict=True):
        write_run(tmp_path / run.name, run, loss)
    muon = runs.Run("muon-11", ARMS["muon"], 11, SLOTS)
    assert "optimizer.lr=8e-3" in runs.run_words(muon, tmp_path)
    assert not runs.has_ended(muon, tmp_path)
    write_run(tmp_path / muon.name, muon, 4.3)
    assert runs.has_ended(muon, tmp_path)
    all_runs = [muon, *runs.tuning("muon", SLOTS)]
    rows = results.write_tables(all_runs, tmp_path, tmp_path)
    assert [row["arm"] for row in rows] == ["muon", *["tuning"] * 4]
    assert [(row["loss"], row["lr"]) for row in rows[:2]] == [(4.3, "0.008"), (4.5, "0.004")]
    assert str(results.read(tmp_path / results.CSV)) == str(rows)  # which hold NaN
    longer = dataclasses.replace(muon, slots=2 * SLOTS)
    with pytest.raises(UserError, match="another phases than muon has now"):
        runs.has_ended(longer, tmp_path)


def test_the_page_holds_the_tables_of_the_raw_results():
    rows = results.read(ROOT / "benchmarks/results/ablations" / results.CSV)
    text = results.tables(rows)
    assert text == (ROOT / "benchmarks/results/ablations" / results.TABLES).read_text()
    page = (ROOT / "docs/ablations.md").read_text()
    assert text in page
    for image in re.findall(r"\]\((ablations/.*?)\)", page):
        assert (ROOT / "docs" / image).is_file()
