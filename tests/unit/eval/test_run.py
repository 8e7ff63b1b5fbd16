import pytest

from restomod.errors import UserError
from restomod.eval.run import Request, models_of
from restomod.eval.suite import Suite


def test_models_are_named_for_their_folders_and_only_once(tmp_path):
    paths = [tmp_path / "a" / "exported", tmp_path / "b" / "exported", tmp_path / "tuned"]
    named = [model.name for model in models_of(Request(paths, Suite(), ""))]
    assert named == [str(paths[0]), str(paths[1]), "tuned"]
    again = tmp_path / "a" / ".." / "tuned"
    with pytest.raises(UserError, match=r"a/\.\./tuned: is named twice"):
        models_of(Request([*paths, again], Suite(), ""))
