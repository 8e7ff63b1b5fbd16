"""What baselines take after."""

from types import SimpleNamespace

from restomod.eval.run import reference


def encoder(layers, max_tokens):
    config = SimpleNamespace(layers=layers, hidden_size=64)
    return SimpleNamespace(model=SimpleNamespace(config=config), max_tokens=max_tokens)


def test_baselines_read_texts_as_long_as_the_latest_checkpoint_does():
    early, late, other = encoder(2, 512), encoder(2, 2048), encoder(4, 8192)
    assert reference([early, late, other]) is late
    assert reference([other, early, late]) is other
    assert reference([]) is None
