"""What a judgement calls its models, and what its baselines take after."""

from types import SimpleNamespace

import pytest

from restomod.errors import UserError
from restomod.eval.run import Request, models_of, reference
from restomod.eval.suite import Suite


def encoder(layers, max_tokens):
    config = SimpleNamespace(layers=layers, hidden_size=64)
    return SimpleNamespace(model=SimpleNamespace(config=config), max_tokens=max_tokens)


def test_baselines_read_texts_as_long_as_the_latest_checkpoint_does():
    early, late, other = encoder(2, 512), encoder(2, 2048), encoder(4, 8192)
    assert reference([early, late, other]) is late
    assert reference([other, early, late]) is other
    assert reference([]) is None


def test_models_are_named_for_their_folders_and_only_once(tmp_path):
    paths = [tmp_path / "a" / "exported", tmp_path / "b" / "exported", tmp_path / "tuned"]
    named = [model.name for model in models_of(Request(paths, Suite(), ""))]
    assert named == [str(paths[0]), str(paths[1]), "tuned"]
    again = tmp_path / "a" / ".." / "tuned"
    with pytest.raises(UserError, match=r"a/\.\./tuned: is named twice"):
        models_of(Request([*paths, again], Suite(), ""))
