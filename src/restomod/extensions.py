"""What users bring themselves, by `package.module:Name`: callbacks, evaluation hooks, optimizers,
shapes of the learning rate's decay, sources of documents, transforms of a stream's text.

In: a mapping of the recipe, `{use: package.module:Name, option: value, ...}`. Out: an instance of
that class. It is a dataclass, and the options are its fields: they are checked as strictly as our
own, before the model is built. docs/extend.md has an example.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from restomod.errors import UserError
from restomod.strict import check_options

if TYPE_CHECKING:
    from restomod.config import OptimizerConfig, Recipe

USE = "use"
READS = ("shard_documents", "read", "fingerprint")
"""What a source of documents has."""
NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_extension(name: str) -> bool:
    """Return whether `name` is written as package.module:Name."""
    return bool(NAME.fullmatch(name))


def problems(recipe: Recipe) -> list[tuple[str, str]]:
    """Return (key, reason) for all that is wrong with a recipe's extensions."""
    found: list[tuple[str, str]] = []
    for name, given in recipe.callbacks.items():
        found += _problems(given, f"callbacks.{name}", "run_event")
    for name, given in recipe.evaluation.hooks.items():
        found += _problems(given, f"evaluation.hooks.{name}", "__call__")
    for section, streams in (("data", recipe.data), ("evaluation", recipe.evaluation)):
        for name, stream in streams.streams.items():
            key = f"{section}.streams.{name}"
            if stream.transform:
                found += _problems(stream.transform, f"{key}.transform", "__call__")
            if stream.source:
                found += _problems(stream.source, f"{key}.source", *READS)
    found += _optimizer_problems(recipe.optimizer)
    for n, phase in enumerate(recipe.phases):
        schedule, key = phase.schedule, f"phases.{n}.schedule"
        shape, options = schedule.decay_shape, schedule.decay_options
        found += _named(shape, options, key, "decay_shape", "decay_options")
    return found


def _optimizer_problems(optimizer: OptimizerConfig) -> list[tuple[str, str]]:
    name = optimizer.name
    found = _named(name, optimizer.options, "optimizer", "name", "options")
    if is_extension(name) and not found:
        moments = getattr(_find(name), "moments", None)
        if not isinstance(moments, tuple) or not all(isinstance(m, str) for m in moments):
            reason = f"{name}: has no tuple `moments`, the names of the tensors that it keeps"
            found.append(("optimizer.name", reason))
    return found


def _named(
    name: str, options: Mapping[str, Any], key: str, name_key: str, options_key: str
) -> list[tuple[str, str]]:
    """Return (key, reason) for what is wrong with an extension whose name and options are two keys
    of a section."""
    if not is_extension(name):
        wrong = f"only a {name_key} of your own has options"
        return [(f"{key}.{options_key}", wrong)] if options else []
    found = _problems({USE: name, **options}, f"{key}.{options_key}", "__call__")
    use = f".{options_key}.{USE}"
    return [(place.replace(use, f".{name_key}"), reason) for place, reason in found]


def _problems(given: Mapping[str, Any], key: str, *methods: str) -> list[tuple[str, str]]:
    """Return (key, reason) for all that is wrong with an extension that has to have `methods`."""
    name = given.get(USE)
    if not isinstance(name, str) or not is_extension(name):
        return [(f"{key}.{USE}", f"{name!r}: write package.module:Name")]
    try:
        found = _find(name)
    except UserError as error:
        return [(f"{key}.{USE}", str(error))]
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        return [(f"{key}.{USE}", f"{name}: is no dataclass, whose fields would be its options")]
    for method in methods:
        if not any(method in vars(base) for base in found.__mro__):
            return [(f"{key}.{USE}", f"{name}: has no method {method}")]
    if "run_event" in methods and found.__hash__ is None:
        return [(f"{key}.{USE}", f"{name}: write @dataclass(eq=False); Composer needs its hash")]
    options = {option: value for option, value in given.items() if option != USE}
    wrong = [(f"{key}.{option}", reason) for option, reason in check_options(options, found)]
    if not wrong:
        try:
            make(given)
        except (TypeError, ValueError) as error:
            wrong.append((key, f"{name}: {error}"))
        except Exception as error:  # whatever a user's class raises
            wrong.append((key, f"{name}: {type(error).__name__}: {error}"))
    return wrong


def make(given: Mapping[str, Any]) -> Any:
    """Return a new instance of what a checked mapping names."""
    options = {option: value for option, value in given.items() if option != USE}
    return _find(given[USE])(**options)


def shared(given: Mapping[str, Any]) -> Any:
    """Return one instance for all equal mappings: of what has no state."""
    return _shared(json.dumps(given, sort_keys=True), 0)


def of_this_process(given: Mapping[str, Any]) -> Any:
    """Return this process's own instance for all equal mappings: of what may hold open files or
    connections, which a fork of the process must not use."""
    return _shared(json.dumps(given, sort_keys=True), os.getpid())


@functools.cache
def _shared(given: str, process: int) -> Any:
    """Return the instance of a process; 0: the one that forks share."""
    return make(json.loads(given))


def _find(name: str) -> Any:
    """Import what `name` names; the folder where the command runs counts, as in `python FILE`."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever a user's module raises
        raise UserError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(found, attribute):
        near = difflib.get_close_matches(attribute, vars(found), n=1)
        hint = f"; did you mean {module}:{near[0]}?" if near else ""
        raise UserError(f"{module} has no {attribute}{hint}")
    return getattr(found, attribute)
