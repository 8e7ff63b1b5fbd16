import re
from dataclasses import asdict

from restomod.config import PhaseConfig
from restomod.tools.report.differences import differences


def cells(html):
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def recipe(name, norm, lr, **more):
    return {
        "run_name": name,
        "model": {"norm": norm, "layers": 3},
        "phases": [{"name": "pretrain", "lr": lr}],
    } | more


def test_keys_that_differ_are_rows_and_recipes_columns():
    recipes = {
        "a": recipe("a", "layernorm", 1e-4),
        "<b>": recipe("b", "rmsnorm", 1e-3, seed=3),
        "unreadable": {},
    }
    assert cells(differences(recipes, ("run_name",))) == [
        ["key", "a", "&lt;b&gt;"],
        ["model.norm", "layernorm", "rmsnorm"],
        ["phases.pretrain.lr", "0.0001", "0.001"],
        ["seed", "", "3"],
    ]


def test_equal_recipes_have_no_table():
    same = recipe("a", "layernorm", 1e-4)
    assert differences({"a": same, "b": same | {"run_name": "b"}}, ("run_name",)) == ""


def test_a_damaged_recipe_is_compared_as_far_as_it_goes():
    damaged = {"phases": [{"name": ["x"], "slots": 3}], "model": ["odd", {"a": 1}]}
    assert ["phases.[&#x27;x&#x27;].slots", "", "3"] in cells(
        differences({"a": recipe("a", "layernorm", 1e-4), "b": damaged})
    )


def test_of_a_phase_that_one_recipe_has_only_what_it_says_is_shown():
    one = {"phases": [asdict(PhaseConfig(name="a"))]}
    two = {"phases": [*one["phases"], asdict(PhaseConfig(name="b", slots="5M", lr=1e-3))]}
    shown = [row[0] for row in cells(differences({"one": one, "two": two}))]
    assert shown == ["key", "phases.b.name", "phases.b.slots", "phases.b.lr"]
