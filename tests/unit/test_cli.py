"""What the command line says before any command runs."""

import sys

import pytest

from restomod import cli


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["train", "my.yaml", "seed=1"], 2, "python train.py my.yaml seed=1"),
        (["train"], 2, "a recipe is trained by: python train.py"),
        (["--version"], 0, "restomod 0.1.0"),
        (["--help"], 0, "python train.py RECIPE.yaml"),
    ],
)
def test_the_command_line_says_how_a_recipe_is_trained(words, code, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["restomod", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    assert left.value.code == code
    assert expected in " ".join((said.out + said.err).split())
