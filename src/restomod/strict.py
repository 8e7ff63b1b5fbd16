"""Strict loading of YAML into dataclasses: the schema is the dataclass.

In: YAML files, `key=value` overrides, a dataclass. Out: an instance of it, every key and type of
which has been checked, or a `UserError` that lists what is wrong, with file, line and the nearest
valid key. Which combinations make sense is the caller's to check (`restomod.recipe` and the data
preparation do).
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import re
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from restomod.errors import UserError, within

Schema = TypeVar("Schema")
Places = dict[str, str]
"""`FILE:LINE` of every key that was written."""
KINDS = {
    "phases": "a training recipe, as train.py and `restomod plan` take it",
    "sources": "a preparation, as `restomod prepare` takes it",
    "parameters": "a sweep, as `restomod sweep` takes it",
    "columns": "a fine-tuning, as `restomod finetune` takes it",
    "tasks": "a suite, as `restomod eval --suite` takes it",
}
"""What a file is, by a key that only such files have."""

FOREIGN = {
    "train_loader": "AnswerDotAI/ModernBERT's code; docs/migrate.md has its keys beside ours",
}
"""Whose a file is, by a key that only such files have."""

DEEPEST = 50
"""Levels of keys in a file; no schema has so many."""
LONGEST = 80
"""Characters of a value that a message shows."""
LARGEST, SMALLEST = 3.4e38, 1.2e-38
"""Of numbers: what float32 holds."""
MISSING = "???"
"""What OmegaConf takes for a value that is yet to be given."""


def load_strict(
    paths: list[str | Path],
    overrides: list[str],
    schema: type[Schema],
    impossible: Callable[[Schema], list[tuple[str, str]]],
) -> Schema:
    """Read a `schema` from YAML files (later ones win) and `key=value` overrides.

    `impossible` returns (key, reason) for values and combinations that cannot work. Raises
    UserError listing every unknown key and wrong type, or else everything impossible.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    places: Places = {}
    merged: Any = OmegaConf.create({})
    for path in paths:
        tree = _read_yaml(Path(path), places)
        if clash := _clash(OmegaConf.to_container(merged), OmegaConf.to_container(tree)):
            raise UserError(
                f"{place(clash, places)}{clash}: a list and a mapping do not merge with what an "
                "earlier file says; write the whole value as that file does"
            )
        merged = OmegaConf.merge(merged, tree)
    for override in overrides:
        _override(merged, override, places)
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise _named(error, places, "the recipe", "does not resolve: ") from error
    return _checked(plain, schema, impossible, places)


def check_options(options: dict[str, Any], kind: type) -> list[tuple[str, str]]:
    """Return (name, reason) for every option that a dataclass does not have, or whose value is of
    another type than the field."""
    found: list[str] = []
    _check_type(options, kind, "", {}, kind, found)
    return [(name, reason) for name, _, reason in (line.partition(": ") for line in found)]


def split_words(words: Sequence[str]) -> tuple[list[str | Path], list[str]]:
    """Return the files and the overrides (key=value) among a command's words."""
    return [word for word in words if "=" not in word], [word for word in words if "=" in word]


def load_verbatim(
    path: str | Path, schema: type[Schema], impossible: Callable[[Schema], list[tuple[str, str]]]
) -> Schema:
    """Read a `schema` from one YAML file in which `${...}` is text, not a reference; otherwise as
    `load_strict`."""
    from omegaconf import OmegaConf

    places: Places = {}
    plain = OmegaConf.to_container(_read_yaml(Path(path), places))
    return _checked(plain, schema, impossible, places)


def escaped(value: Any) -> Any:
    """Return a tree of which OmegaConf resolves nothing, and gives back what `value` is."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _clash(old: Any, new: Any, key: str = "") -> str:
    """Return the key at which a list meets a mapping, which OmegaConf does not name."""
    if isinstance(old, dict) and isinstance(new, dict):
        below = (_clash(old[k], new[k], f"{key}.{k}".lstrip(".")) for k in old.keys() & new.keys())
        return next(filter(None, below), "")
    both = isinstance(old, dict | list) and isinstance(new, dict | list)
    return key if both and type(old) is not type(new) else ""


def _named(error: Any, places: Places, path: str | Path, what: str = "") -> UserError:
    """Return what an error of OmegaConf says, with its key and place, or else the file."""
    key = re.sub(r"\[(\w+)\]", r".\1", error.full_key or "").lstrip(".")
    return UserError(f"{place(key, places)}{key or path}: {what}{str(error).splitlines()[0]}")


def _checked(
    plain: Any,
    schema: type[Schema],
    impossible: Callable[[Schema], list[tuple[str, str]]],
    places: Places,
) -> Schema:
    """Return the schema of a plain tree; raise UserError listing what is wrong."""
    from omegaconf import OmegaConf

    _refuse_other_kind(plain, schema, places)
    problems: list[str] = []
    _check_type(plain, schema, "", places, schema, problems)
    if problems:
        raise UserError("\n".join(problems))
    loaded: Schema = OmegaConf.to_object(  # type: ignore[assignment]
        OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(escaped(plain)))
    )
    problems = [f"{place(key, places)}{key}: {problem}" for key, problem in impossible(loaded)]
    if problems:
        raise UserError("\n".join(problems))
    return loaded


def _refuse_other_kind(plain: dict[str, Any], schema: type, places: Places) -> None:
    """Raise UserError for a file that another command takes, rather than list all of its keys."""
    for key in FOREIGN.keys() & plain.keys() - typing.get_type_hints(schema).keys():
        raise UserError(f"{place(key, places)}{key}: this is a YAML of {FOREIGN[key]}")
    own = KINDS.keys() & typing.get_type_hints(schema).keys()
    if not own or own & plain.keys():
        return
    for key in KINDS:
        if key in plain:
            expected = next(KINDS[name] for name in KINDS if name in own)
            raise UserError(
                f"{place(key, places)}{key}: this is {KINDS[key]}; {expected}, is expected"
            )


def _read_yaml(path: Path, places: Places) -> Any:
    """Parse one YAML file; note in `places` the file and line of every key."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        is_path = path.suffix in (".yaml", ".yml") or len(path.parts) > 1
        hint = "" if is_path else f"; to set a key, write {path}=VALUE"
        raise UserError(f"{path}: no such file{within(path)}{hint}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; a YAML file is expected") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}:1: a recipe is a mapping of keys to values")
        tree = OmegaConf.load(io.StringIO(text))
        _note_places(node, "", str(path), places)
    except OmegaConfBaseException as error:
        _note_places(node, "", str(path), places)
        raise _named(error, places, path) from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply to be read") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        hint = "" if path.suffix in (".yaml", ".yml") else "; the command takes YAML files"
        raise UserError(f"{path}{where}: is not valid YAML: {reason}{hint}") from error
    except (ValueError, LookupError, AttributeError) as error:  # of a tag, or 4,300 digits
        raise UserError(
            f"{path}: {_unreadable(node) or 'a value'} is not what its YAML tag says: {error}"
        ) from error
    return tree


def _unreadable(node: Any, key: str = "") -> str:
    """Return the key of the first value that YAML itself cannot make."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        try:
            yaml.SafeLoader("").construct_object(node)
        except (ValueError, LookupError, AttributeError):
            return key
        return ""
    named = isinstance(node, yaml.MappingNode)
    items = [(k.value, v) for k, v in node.value] if named else enumerate(node.value)
    return next(filter(None, (_unreadable(v, f"{key}.{k}".lstrip(".")) for k, v in items)), "")


def _note_places(node: Any, prefix: str, path: str, places: Places) -> None:
    import yaml

    if prefix.count(".") > DEEPEST:
        raise RecursionError
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}.{key.value}" if prefix else str(key.value)
            places[dotted] = f"{path}:{key.start_mark.line + 1}"
            _note_places(value, dotted, path, places)
    elif isinstance(node, yaml.SequenceNode):
        for n, value in enumerate(node.value):
            places[f"{prefix}.{n}"] = f"{path}:{value.start_mark.line + 1}"
            _note_places(value, f"{prefix}.{n}", path, places)


def _override(merged: Any, override: str, places: Places) -> None:
    """Apply one `key=value`; items of a list of named mappings are addressed by name or number. A
    mapping adds to what is there, an empty one empties it."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"command line: `{override}` is not an override; write key=value")
    parts = key.split(".")
    try:
        items = merged.get(parts[0])
        if OmegaConf.is_list(items) and len(parts) > 1:
            names = [str(item.get("name", "")) if OmegaConf.is_dict(item) else "" for item in items]
            if parts[1] in names:
                parts[1] = str(names.index(parts[1]))
            elif not (parts[1].isascii() and parts[1].isdigit()) or int(parts[1]) >= len(names):
                there = ", ".join(filter(None, names)) or f"0 to {len(names) - 1}"
                raise UserError(
                    f"command line: `{key}`: {parts[0]} holds no {parts[1]}; there is {there}"
                )
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        value = given["value"] if text else ""
        merges = isinstance(value, dict) and bool(value)
        OmegaConf.update(merged, ".".join(parts), value, force_add=True, merge=merges)
    except OmegaConfBaseException as error:
        raise UserError(f"command line: `{override}`: {str(error).splitlines()[0]}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"command line: `{override}`: the value is not valid YAML") from error
    _note_override(value, ".".join(parts), places)


def _note_override(value: Any, key: str, places: Places) -> None:
    """Note that a key, and what a value says below it, were given on the command line."""
    places[key] = "command line"
    if isinstance(value, list):
        value = dict(enumerate(value))
    for name, item in value.items() if isinstance(value, dict) else ():
        _note_override(item, f"{key}.{name}", places)


def place(key: str, places: Places) -> str:
    """Return `FILE:LINE: ` of a key, or of the nearest of its parents that was written."""
    parts = key.split(".")
    while parts:
        if ".".join(parts) in places:
            return places[".".join(parts)] + ": "
        parts.pop()
    return ""


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", bytes: "bytes"}
    number = "a whole number" if isinstance(value, int) else "a number"
    return "nothing" if value is None else names.get(type(value), number)


def _check_type(
    value: Any, kind: Any, key: str, places: Places, schema: type, problems: list[str]
) -> None:
    """Append to `problems` what in `value` does not fit the annotation `kind`."""

    def wrong(expected: str, hint: str = "") -> None:
        problems.append(
            f"{place(key, places)}{key}: {value!r} is {_kind(value)}, {expected} is expected{hint}"
        )

    if value == MISSING:
        return wrong("a value")
    origin = typing.get_origin(kind)
    if origin is types.UnionType:  # X | None
        if value is None:
            return None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
        origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            return wrong("a mapping")
        hints = typing.get_type_hints(kind)
        for name, item in value.items():
            path = f"{key}.{name}" if key else str(name)
            if name not in hints:
                problems.append(_unknown(str(name), item, path, hints, places, schema))
            else:
                _check_type(item, hints[name], path, places, schema, problems)
        for option in dataclasses.fields(kind):
            choices, chosen = option.metadata.get("choices"), value.get(option.name)
            extends = option.metadata.get("extends") and ":" in str(chosen)
            told = chosen is not None and not isinstance(chosen, bool | dict | list)
            if choices and told and chosen not in choices and not extends:
                path = f"{key}.{option.name}" if key else option.name
                problems.append(
                    f"{place(path, places)}{path}: {chosen!r} is not one of {', '.join(choices)}"
                )
    elif origin is dict:
        if not isinstance(value, dict):
            return wrong("a mapping")
        for name, item in value.items():
            _check_type(item, typing.get_args(kind)[1], f"{key}.{name}", places, schema, problems)
            if not isinstance(name, str):
                problems.append(
                    f"{place(f'{key}.{name}', places)}{key}.{name}: this key is {_kind(name)}, "
                    f"text is expected: write '{name}'"
                )
    elif origin is list:
        if not isinstance(value, list):
            one = type(value) is typing.get_args(kind)[0]
            return wrong("a list", f": write [{value}]" if one else "")
        for n, item in enumerate(value):
            _check_type(item, typing.get_args(kind)[0], f"{key}.{n}", places, schema, problems)
    elif kind is bool:
        if not isinstance(value, bool):
            wrong("true or false")
    elif kind is int:
        if isinstance(value, bool) or not isinstance(value, int):
            wrong("a whole number")
        elif not -(2**63) <= value < 2**63:
            wrong("one of at most 64 bits")
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            wrong("a number")
        elif not abs(value) <= LARGEST:
            wrong("a finite number" if value * 0 != 0 else f"one within +-{LARGEST:g}")
        elif 0 < abs(value) < SMALLEST:
            wrong(f"zero, or one from {SMALLEST:g} on,")
    elif kind is str and (isinstance(value, bool) or not isinstance(value, str | int | float)):
        wrong("text")
    elif kind is str and isinstance(value, int | float) and not abs(value) < 2**63:
        wrong("text, or a number of at most 64 bits")
    elif kind is str and "\0" in str(value):
        wrong("text without NUL characters")


def _unknown(
    name: str, value: Any, path: str, hints: dict[str, Any], places: Places, schema: type
) -> str:
    """Return the message for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, hints, n=1, cutoff=0.5)
    known_keys = reversed(_known_keys(schema))  # so that the first of a name is suggested
    everywhere = {known.rsplit(".", 1)[-1]: known for known in known_keys}
    parent = path.rpartition(".")[0]
    if near:
        hint = f"did you mean `{parent + '.' if parent else ''}{near[0]}`?"
    elif name in everywhere:
        hint = f"did you mean `{everywhere[name]}`?"
    else:
        hint = f"valid keys here: {', '.join(hints)}"
    return f"{place(path, places)}{path}: unknown key (value {_short(value)}); {hint}"


def _short(value: Any) -> str:
    written = repr(value)
    return written if len(written) <= LONGEST else f"{written[:LONGEST]} ..."


def _known_keys(kind: Any, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in typing.get_type_hints(kind).items():
        inner = [a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)]
        keys.append(prefix + name)
        for item in inner:
            middle = "" if item is hint else ("NAME." if typing.get_origin(hint) is dict else "0.")
            keys += _known_keys(item, f"{prefix}{name}.{middle}")
    return keys
