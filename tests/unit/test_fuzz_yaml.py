"""Whatever value any key of any kind of file has, it is taken or refused in a message."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import random
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from restomod.errors import UserError
from restomod.eval.suite import load_suite
from restomod.finetune.config import FinetuneConfig, load_finetune
from restomod.launch.profile import Profile, load_profile
from restomod.prepare.config import Preparation, load_preparation
from restomod.recipe import Recipe, load_recipe
from restomod.sweep.file import SweepFile, load_sweep
from tests.unit.test_recipe import GOOD

SHIPPED = Path(__file__).parents[2] / "yamls"
LEAST = {"model": "m", "out": "o", "data": {"path": "d"}}
PREPARATION = {"out": "o", "sources": {"a": {"paths": ["a"]}}}
KINDS = {
    "recipe": (Recipe, yaml.safe_load(GOOD), lambda path: load_recipe([path])),
    "finetune": (FinetuneConfig, LEAST, lambda path: load_finetune([path], [])),
    "prepare": (Preparation, PREPARATION, lambda path: load_preparation([path], [])),
    "profile": (Profile, {"mounts": [{"source": "/a", "target": "/a"}]}, load_profile),
    "sweep": (
        SweepFile,
        yaml.safe_load((SHIPPED / "sweeps" / "mask-rate.yaml").read_text()),
        load_sweep,
    ),
}
NOTHING_FITS = (None, b"bytes", {"a": {1: None}}, [[]], "???", "${nothing}", "a\0b", 10**400)
"""Values that no key can have, but null where it says so."""
ODD = (-1, 0, 1, 2**62, -0.5, 1e-300, 1e300, math.nan, math.inf, "", " ", "x" * 5000, [], {}, True)


def keys(kind: typing.Any, tree: typing.Any, at: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every key of a schema, also inside of what `tree` names itself."""
    for name, hint in typing.get_type_hints(kind).items():
        path = (*at, name)
        below = tree.get(name) if isinstance(tree, dict) else None
        yield path
        parts = typing.get_args(hint)
        if typing.get_origin(hint) is types.UnionType and below:
            hint = next(part for part in parts if part is not type(None))
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, below, path)
        elif below and parts and dataclasses.is_dataclass(parts[-1]):
            first = next(iter(below)) if isinstance(below, dict) else 0
            yield from keys(parts[-1], below[first], (*path, first))


def written(file: Path, tree: dict, path: tuple, value: object) -> Path:
    """Write the tree with one value changed."""
    tree = copy.deepcopy(tree)
    at: typing.Any = tree
    for part, then in itertools.pairwise(path):
        if isinstance(at, dict):
            at.setdefault(part, [] if isinstance(then, int) else {})
        at = at[part]
    at[path[-1]] = value
    file.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_any_value_of_any_key_is_taken_or_refused_by_name(kind, tmp_path):
    schema, tree, load = KINDS[kind]
    draw = random.Random(0)
    for path in keys(schema, tree):
        dotted = ".".join(map(str, path))
        for value in (draw.choice(NOTHING_FITS), draw.choice(ODD), draw.choice(ODD)):
            file = written(tmp_path / "file.yaml", tree, path, value)
            try:
                load(file)
            except UserError as error:
                parent, _, last = dotted.rpartition(".")
                said = str(error)
                assert any(name and name in said for name in (dotted, parent, last)), (value, said)


def test_a_value_that_nothing_can_be_is_never_taken(tmp_path):
    schema, tree, load = KINDS["recipe"]
    free = ("phases.0.lr", "phases.0.weight_decay")  # null
    draw = random.Random(1)
    for path in keys(schema, tree):
        dotted = ".".join(map(str, path))
        value = draw.choice([v for v in NOTHING_FITS if v is not None or dotted not in free])
        with pytest.raises(UserError, match=dotted.replace(".", r"\.")):
            load(written(tmp_path / "file.yaml", tree, path, value))


@pytest.mark.parametrize("text", ["- a", "a: [", "\ufeffa: 1", "a\tb: 1", "a: " + 1000 * "["])
def test_text_that_is_no_mapping_of_known_keys_is_refused(text, tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text(text, encoding="utf-8")
    for load in (load_suite, *(load for _, _, load in KINDS.values())):
        with pytest.raises(UserError):
            load(str(file) if load is load_suite else file)
