import json

from restomod.recipe import load_recipe
from restomod.tools.inspect import inspect_steps


def lines(tiny, tmp_path, first, last, world_size, **changes):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml", **changes)])
    return [json.loads(line) for line in inspect_steps(recipe, first, last, world_size, True)]


def test_inspect_shows_the_same_for_any_world(tiny, tmp_path):
    one = lines(tiny, tmp_path, 0, 6, 1, data__workers=0)
    assert [line["step"] for line in one] == [1, 2, 3, 4, 5, 6]
    assert lines(tiny, tmp_path, 0, 6, 4, data__workers=1) == one
    assert lines(tiny, tmp_path, 3, 6, 2, data__workers=0) == one[3:]
    assert all(line["rows"] == 4 for line in one)
    assert all(line["tokens"] <= 2048 and line["documents"] > 0 for line in one)
    assert {"packing_efficiency", "data_digest"} <= one[0].keys()
