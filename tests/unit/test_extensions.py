"""What users bring is checked as strictly as what is ours."""

import re
from pathlib import Path

import pytest

from restomod.config import ScheduleConfig
from restomod.errors import UserError
from restomod.model.memory import moments_per_parameter
from restomod.optim.schedules import trapezoid
from restomod.recipe import load_recipe

EXTRAS = re.search(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/extend.md").read_text(), re.S
)[1]


@pytest.fixture
def recipe(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_extras.py").write_text(EXTRAS)
    (tmp_path / "broken_extras.py").write_text("import nothing_like_that\n")
    equal = EXTRAS.replace("(eq=False)", "").replace("Norms", "Equal")
    (tmp_path / "broken_extras_too.py").write_text(equal)
    return tiny.write(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.n={use: my_extras}", "callbacks.n.use: 'my_extras': write package.module:Name"),
        ("callbacks.n={every: 1}", "callbacks.n.use: None: write package.module:Name"),
        ("callbacks.n={use: 'nowhere_at_all:N'}", "nowhere_at_all cannot be imported: ModuleNot"),
        ("callbacks.n={use: 'broken_extras:N'}", "broken_extras cannot be imported: ModuleNot"),
        ("callbacks.n={use: 'my_extras:Norm'}", "has no Norm; did you mean my_extras:Norms?"),
        ("callbacks.n={use: 'my_extras:torch'}", "is no dataclass"),
        ("callbacks.n={use: 'my_extras:Exponential'}", "has no method run_event"),
        (
            "callbacks.n={use: 'my_extras:Norms', every_step: 2}",
            "callbacks.n.every_step: unknown key (value 2); did you mean `every_steps`?",
        ),
        (
            "callbacks.n={use: 'my_extras:Norms', every_steps: often}",
            "callbacks.n.every_steps: 'often' is text, a whole number is expected",
        ),
        ("callbacks.n={use: 'my_extras:Norms', every_steps: 0}", "every_steps 0: at least 1"),
        ("callbacks.n={use: 'broken_extras_too:Equal'}", "write @dataclass(eq=False)"),
        ("evaluation.hooks.n={use: 'my_extras:Norms'}", "has no method __call__"),
        ("data.streams.code.transform={use: 'my_extras:Norms'}", "has no method __call__"),
        ("data.streams.code.source={use: 'my_extras:Norms'}", "has no method shard_documents"),
        ("data.streams.code.source={use: 'my_extras:Table', databas: a}", "mean `database`?"),
        (
            "data.streams.code.source={use: 'my_extras:Table'}",
            "my_extras:Table: OperationalError: unable to open database file",
        ),
        ("phases.0.schedule.decay_shape='my_extras:Falling'", "my_extras has no Falling"),
        ("phases.0.schedule.decay_shape=expo", "'expo' is not one of one_minus_sqrt, linear"),
        ("phases.0.schedule.decay_options={halvings: 2.0}", "only a decay_shape of your own has"),
        ("optimizer.name='my_extras:Lio'", "optimizer.name: my_extras has no Lio"),
        ("optimizer.name='my_extras:Exponential'", "my_extras:Exponential: has no tuple `moments`"),
        ("optimizer={name: 'my_extras:Lion', options: {beta: 1}}", "did you mean `beta2`?"),
        (
            "optimizer={name: 'my_extras:Lion', eps: 1e-3}",
            "optimizer.eps: nothing reads it with an",
        ),
        (
            "optimizer.options={beta1: 0.5}",
            "optimizer.options: only a name of your own has options",
        ),
    ],
)
def test_mistakes_are_named(recipe, override, message):
    with pytest.raises(UserError) as error:
        load_recipe([recipe], [override])
    assert message in str(error.value)


def test_an_optimizer_of_ones_own_counts_in_the_plan(recipe):
    own = load_recipe([recipe], ["optimizer={name: 'my_extras:Lion', options: {beta1: 0.5}}"])
    assert moments_per_parameter(own, 512) == 1


def test_a_shape_of_ones_own_falls_as_it_says(recipe):
    shape = {"decay_shape": "my_extras:Exponential", "decay_options": {"halvings": 2.0}}
    schedule = ScheduleConfig(decay="100", final_factor=0.1, **shape)
    assert trapezoid(0, 100, schedule) == 1
    assert trapezoid(50, 100, schedule) == pytest.approx(0.1 + 0.9 * (0.5 - 0.25) / 0.75)
    assert trapezoid(100, 100, schedule) == pytest.approx(0.1)
