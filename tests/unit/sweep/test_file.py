import copy
from pathlib import Path

import pytest
import yaml

from restomod.errors import UserError
from restomod.recipe import load_recipe
from restomod.strict import split_words
from restomod.sweep.file import load_sweep
from restomod.sweep.study import draws

ROOT = Path(__file__).parents[3]
SWEEP = {
    "method": "random",
    "program": "train.py",
    "command": ["${env}", "python", "${program}", "recipe.yaml", "seed=3", "${args_no_hyphens}"],
    "metric": {"name": "eval/all/loss"},
    "parameters": {"optimizer.lr": {"min": 1e-4, "max": 1e-2}},
    "run_cap": 4,
}


@pytest.fixture
def load(tmp_path):
    """Load a sweep with some keys changed, at a dotted path of `/` each; None takes one out."""

    def load_changed(changes=None):
        sweep = copy.deepcopy(SWEEP)
        for path, value in (changes or {}).items():
            *parents, last = path.split("/")
            target = sweep
            for parent in parents:
                target = target.setdefault(parent, {})
            if value is None:
                del target[last]
            else:
                target[last] = value
        file = tmp_path / "my-sweep.yaml"
        file.write_text(yaml.safe_dump(sweep))
        return load_sweep(file)

    return load_changed


def test_a_trials_command_line(load):
    sweep = load()
    assert sweep.name == "my-sweep"
    assert sweep.before_program() == ["/usr/bin/env", "python"]
    words = ["recipe.yaml", "seed=3", "optimizer.lr=1e-05"]
    assert sweep.words({"optimizer.lr": 1e-5}) == words
    agents = load({"command": [*SWEEP["command"], "run_name=x-${oc.env:WANDB_RUN_ID}"]})
    assert agents.words({"optimizer.lr": 1e-5}) == words


LR = "parameters/optimizer.lr"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methd": "grid"}, "methd: unknown key (value 'grid'); did you mean `method`?"),
        ({"method": "bayesian"}, "method: 'bayesian' is not one of grid, random, bayes"),
        ({"method": None}, "method: is missing"),
        ({"metric": None}, "metric.name: is missing"),
        ({"metric/name": "loss"}, "metric.name: 'loss': write train/FIELD"),
        ({"metric/goal": "min"}, "metric.goal: 'min' is not one of minimize, maximize"),
        ({"metric/target": 2.0}, "metric.target: only W&B's server does this"),
        ({"controller": {"type": "local"}}, "controller: only W&B's server does this"),
        ({"run_cap": None}, "run_cap: is missing: the trials after which random search ends"),
        ({"parameters": None}, "parameters: is missing"),
        ({"parameters/run_name": {"value": "x"}}, "parameters.run_name: tells trials apart"),
        ({f"{LR}/distribution": "normal"}, "optimizer.lr.distribution: 'normal': only constant"),
        ({f"{LR}/mu": 1}, "optimizer.lr.mu: only W&B's server does this"),
        ({f"{LR}/max": None}, "optimizer.lr: max: missing; give value, values, or min and max"),
        ({f"{LR}/max": 1e-5}, "optimizer.lr.min: 0.0001 is above max 1e-05"),
        ({f"{LR}/max": "high"}, "optimizer.lr.max: 'high': a finite number is expected"),
        ({f"{LR}/values": [1]}, "optimizer.lr.max: nothing reads it with categorical"),
        ({f"{LR}/q": 2}, "optimizer.lr.q: nothing reads it with uniform"),
        ({LR: {"values": []}}, "optimizer.lr.values: []: a list of values is expected"),
        ({LR: {"values": [1, 1]}}, "optimizer.lr.values: 1 is there twice"),
        ({LR: {"min": 0, "max": 1, "distribution": "log_uniform_values"}}, "min: 0: must be"),
        ({LR: {"min": 0.0, "max": 0.4, "distribution": "int_uniform"}}, "a whole number"),
        ({LR: {"min": 0.2, "max": 0.4, "distribution": "q_uniform"}}, "q: no multiple of 1"),
        ({LR: {"parameters": {"x": {"value": 1}}}}, "optimizer.lr.parameters: only W&B's"),
        ({"method": "grid"}, "optimizer.lr: a grid needs the values themselves"),
        ({"command": None}, "command: write [${env}, python, ${program}, RECIPE.yaml"),
        ({"command": ["${program}", "${args}"]}, "command: write [${env}, python"),
        ({"command": ["${program}", "${args_no_hyphens}"]}, "command: names no recipe"),
        ({"command": [*SWEEP["command"], "${args_json}"]}, "command.6: ${args_json}: only"),
        ({"command": [*SWEEP["command"], "--fork"]}, "command.6: --fork: write key=value"),
        ({"early_terminate": {"type": "envelope"}}, "early_terminate.type: 'envelope' is not"),
        ({"early_terminate": {"type": "hyperband"}}, "give min_iter, or max_iter and s"),
        ({"early_terminate": {"min_iter": 1, "eta": 1}}, "early_terminate.eta: 1: must be at"),
        ({"early_terminate": {"min_iter": 1, "strict": False}}, "early_terminate.strict: a"),
        ({"name": "a/b"}, "name: 'a/b': use letters"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(load, changes, message):
    with pytest.raises(UserError) as refusal:
        load(changes)
    assert message in str(refusal.value)


def test_a_refusal_says_file_and_line(load, tmp_path):
    with pytest.raises(UserError) as refusal:
        load({"metric/target": 2.0})
    lines = (tmp_path / "my-sweep.yaml").read_text().splitlines()
    line = next(n for n, text in enumerate(lines, 1) if "target" in text)
    assert str(refusal.value).startswith(f"{tmp_path}/my-sweep.yaml:{line}: metric.target: ")


@pytest.mark.parametrize(
    ("stop", "first"),
    [
        ({"min_iter": 4}, 4),
        ({"max_iter": 27, "s": 2}, 3),
        ({"max_iter": 16, "s": 3, "eta": 2}, 2),
        ({"max_iter": 3, "s": 3}, 1),
    ],
)
def test_the_first_judgement(load, stop, first):
    assert load({"early_terminate": {"type": "hyperband", **stop}}).early_terminate.first == first


@pytest.mark.parametrize(
    "file", sorted((ROOT / "yamls" / "sweeps").glob("*.yaml")), ids=lambda f: f.name
)
def test_every_trial_of_a_shipped_sweep_can_be_trained(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = load_sweep(file)
    assert sweep.name == file.stem
    # W&B's agent tells its runs apart by this.
    assert f"run_name={sweep.name}-${{oc.env:WANDB_RUN_ID}}" in sweep.command
    for values in draws(sweep, 20):
        words = sweep.words(values)
        load_recipe(*split_words(words))
