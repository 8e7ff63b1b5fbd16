import itertools

import pytest

from restomod.errors import UserError
from restomod.sweep.file import EarlyTerminate, Metric, SweepFile
from restomod.sweep.space import Parameter
from restomod.sweep.study import (
    DIVERGED,
    DONE,
    FAILED,
    IMPOSSIBLE,
    JOURNAL,
    STOPPED,
    UNFINISHED,
    Study,
)

GRID = {
    "a": Parameter(values=[1, 2, 3]),
    "b": Parameter(values=["x", "y"]),
    "c": Parameter(value=0),
}
DRAWN = {"a": Parameter(min=0.0, max=1.0), "b": Parameter(min=1, max=100)}


def sweep(method, **keys):
    parameters = GRID if method == "grid" else DRAWN
    metric = Metric("eval/all/loss", keys.pop("goal", "minimize"))
    return SweepFile(name="s", method=method, metric=metric, parameters=parameters, **keys)


def run(study, count):
    """Make `count` trials; return the values that they tried."""
    tried = []
    for trial in itertools.islice(iter(study.next, None), count):
        study.finish(trial, DONE, sum(map(ord, str(trial.values))) % 7 / 7, "")
        tried.append(trial.values)
    return tried


def test_a_grid_tries_every_combination_once_whatever_interrupts_it(tmp_path):
    tried = []
    for count in (1, 2, 10):
        study = Study(sweep("grid"), tmp_path)
        tried += run(study, count)
        study.close()
    assert len(tried) == 6
    assert sorted((t["a"], t["b"], t["c"]) for t in tried) == [
        (a, b, 0) for a in (1, 2, 3) for b in ("x", "y")
    ]


def test_a_grid_ends_at_its_run_cap(tmp_path):
    assert len(run(Study(sweep("grid", run_cap=4), tmp_path), 10)) == 4


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_that_goes_on_tries_what_it_would_have_tried(tmp_path, method):
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    unbroken = run(Study(sweep(method, run_cap=9), tmp_path / "unbroken"), 10)
    broken = []
    for count in (2, 4, 10):
        study = Study(sweep(method, run_cap=9), tmp_path / "broken")
        broken += run(study, count)
        study.close()
    assert broken == unbroken
    assert len(broken) == 9
    assert len({t["a"] for t in broken}) == 9


def test_bayes_looks_where_trials_were_good(tmp_path):
    misses = {}
    for method in ("bayes", "random"):
        (tmp_path / method).mkdir()
        study = Study(sweep(method, run_cap=40), tmp_path / method)
        missed = []
        for trial in iter(study.next, None):
            missed.append(abs(trial.values["a"] - 0.3))
            study.finish(trial, DONE, missed[-1], "")
        misses[method] = sum(missed[10:])
    assert misses["bayes"] < 0.75 * misses["random"]


@pytest.mark.filterwarnings("error:The reported value is ignored")
@pytest.mark.parametrize(("goal", "better"), [("minimize", 0), ("maximize", 1)])
def test_the_worse_trials_are_stopped_when_they_are_judged(tmp_path, goal, better):
    stop = EarlyTerminate(min_iter=2, eta=2)
    study = Study(sweep("random", run_cap=9, goal=goal, early_terminate=stop), tmp_path)
    assert [n for n in range(1, 20) if study.judged_at(n)] == [2, 4, 8, 16]
    trials = [study.next() for _ in range(4)]
    values = [0.5, 0.1, 0.9, 0.05] if better == 0 else [0.5, 0.9, 0.1, 0.95]
    judged = [study.worse(t, 2, v) for t, v in zip(trials, values, strict=True)]
    assert judged == [False, False, True, False]  # the best half of those that came as far
    assert not study.worse(trials[2], 2, values[2])  # a resumed trial's, that was judged then
    assert study.worse(trials[3], 4, float("nan"))


def test_nothing_is_judged_without_early_terminate(tmp_path):
    study = Study(sweep("random", run_cap=9), tmp_path)
    assert not any(study.judged_at(n) for n in range(1, 100))


def test_what_became_of_trials_is_kept(tmp_path):
    study = Study(sweep("random", run_cap=6), tmp_path)
    for state in (DONE, STOPPED, IMPOSSIBLE, DIVERGED, FAILED):
        trial = study.next()
        study.note(trial, steps=7)
        study.finish(trial, state, 1.0 if state in (DONE, STOPPED) else None, f"why {state}")
    study.next()
    study.close()
    again = Study(sweep("random", run_cap=6), tmp_path)
    states = [trial.state for trial in again.trials()]
    assert states == [DONE, STOPPED, IMPOSSIBLE, DIVERGED, FAILED, UNFINISHED]
    stopped = again.trials()[1]
    assert (stopped.value, stopped.note, stopped.facts) == (1.0, "why stopped early", {"steps": 7})
    assert [trial.number for trial in again.unfinished()] == [4, 5]
    assert again.next() is None


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    study = Study(sweep("random", run_cap=6), tmp_path)
    tried = run(study, 2)
    study.close()
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('{"op_code":4,"worker')
    again = Study(sweep("random", run_cap=6), tmp_path)
    assert [trial.values for trial in again.trials()] == tried
    assert len(run(again, 10)) == 4
    again.close()
    assert len(Study(sweep("random", run_cap=6), tmp_path).trials()) == 6


def test_one_process_at_a_time(tmp_path):
    study = Study(sweep("grid"), tmp_path)
    with pytest.raises(UserError, match="another process runs this sweep"):
        Study(sweep("grid"), tmp_path)
    study.close()
    Study(sweep("grid"), tmp_path)
