"""Strict loading of a recipe.

In: YAML files and `key=value` overrides. Out: a `Recipe` whose every key, type and combination has
been checked, or a `UserError` that lists what is wrong, with file, line and the nearest valid key.
Imports no torch, so that a mistake is answered in well under two seconds.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from pathlib import Path
from typing import Any

from restomod.config import DataConfig, PhaseConfig, Recipe, parse_slots
from restomod.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def load_recipe(paths: list[str | Path], overrides: list[str] | None = None) -> Recipe:
    """Read a recipe from YAML files (later ones win) and `key=value` overrides.

    Raises UserError listing every unknown key, wrong type and impossible combination found. What
    depends on the world size is checked by `check_world`, what depends on files by `open_sources`.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not paths:
        raise UserError("a recipe is needed: train.py RECIPE.yaml [MORE.yaml ...] [key=value ...]")
    places: dict[str, str] = {}
    merged: Any = OmegaConf.create({})
    for path in paths:
        tree = _read_yaml(Path(path), places)
        merged = OmegaConf.merge(merged, tree)
    try:
        for override in overrides or []:
            _override(merged, override, places)
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the recipe does not resolve: {str(error).splitlines()[0]}") from error
    problems: list[str] = []
    _check_type(plain, Recipe, "", places, problems)
    if problems:
        raise UserError("\n".join(problems))
    recipe: Recipe = OmegaConf.to_object(  # type: ignore[assignment]
        OmegaConf.merge(OmegaConf.structured(Recipe), OmegaConf.create(plain))
    )
    problems = [f"{_place(key, places)}{key}: {problem}" for key, problem in _impossible(recipe)]
    if problems:
        raise UserError("\n".join(problems))
    return recipe


def check_world(recipe: Recipe, world_size: int) -> None:
    """Raise UserError where the lanes or a phase's batch cannot be shared by `world_size` ranks."""
    problems = []
    if recipe.data.lanes % world_size:
        divisors = [n for n in range(1, recipe.data.lanes + 1) if recipe.data.lanes % n == 0]
        problems.append(
            f"data.lanes: {recipe.data.lanes} lanes cannot be shared by {world_size} ranks; "
            f"use {_either(_nearest(world_size, divisors))} ranks, or, for a new run, "
            f"{_either(_multiples(recipe.data.lanes, world_size))} lanes"
        )
    for phase in recipe.phases:
        unit = world_size * phase.micro_batch_rows
        if phase.batch_rows % unit:
            problems.append(
                f"phases.{phase.name}.batch_rows: {phase.batch_rows} rows are not divided by "
                f"{world_size} ranks x {phase.micro_batch_rows} rows of a micro-batch; "
                f"use {_either(_multiples(phase.batch_rows, unit))}"
            )
    if problems:
        raise UserError("\n".join(problems))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML."""
    import yaml

    path.write_text(yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: leaf} of a recipe or its plain form; phases are keyed by name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {item.get("name", str(n)): item for n, item in enumerate(value)}
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _multiples(value: int, unit: int) -> list[int]:
    below = value // unit * unit
    return [n for n in (below, below + unit) if n]


def _nearest(value: int, choices: list[int]) -> list[int]:
    below = [n for n in choices if n <= value]
    above = [n for n in choices if n > value]
    return below[-1:] + above[:1]


def _either(values: list[int]) -> str:
    return " or ".join(str(v) for v in values)


def _read_yaml(path: Path, places: dict[str, str]) -> Any:
    """Parse one YAML file; note in `places` the file and line of every key."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}:1: a recipe is a mapping of keys to values")
        tree = OmegaConf.load(path)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{where}: is not valid YAML: {reason}") from error
    _note_places(node, "", str(path), places)
    return tree


def _note_places(node: Any, prefix: str, path: str, places: dict[str, str]) -> None:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}.{key.value}" if prefix else str(key.value)
            places[dotted] = f"{path}:{key.start_mark.line + 1}"
            _note_places(value, dotted, path, places)
    elif isinstance(node, yaml.SequenceNode):
        for n, value in enumerate(node.value):
            places[f"{prefix}.{n}"] = f"{path}:{value.start_mark.line + 1}"
            _note_places(value, f"{prefix}.{n}", path, places)


def _override(merged: Any, override: str, places: dict[str, str]) -> None:
    """Apply one `key=value`; phases are addressed by name or by number."""
    import yaml
    from omegaconf import OmegaConf

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"command line: `{override}` is not an override; write key=value")
    parts = key.split(".")
    if parts[0] == "phases" and len(parts) > 1:
        phases = merged.get("phases") or []
        names = [str(phase.get("name", "")) for phase in phases]
        if parts[1] in names:
            parts[1] = str(names.index(parts[1]))
        elif not parts[1].isdigit() or int(parts[1]) >= len(names):
            raise UserError(f"command line: `{key}`: no phase {parts[1]}; there is {names}")
    try:
        value = OmegaConf.from_dotlist([f"value={text}"])["value"] if text else ""
    except yaml.YAMLError as error:
        raise UserError(f"command line: `{override}`: the value is not valid YAML") from error
    OmegaConf.update(merged, ".".join(parts), value, force_add=True)
    places[".".join(parts)] = "command line"


def _place(key: str, places: dict[str, str]) -> str:
    """Return `FILE:LINE: ` of a key, or of the nearest of its parents that was written."""
    parts = key.split(".")
    while parts:
        if ".".join(parts) in places:
            return places[".".join(parts)] + ": "
        parts.pop()
    return ""


def _kind(value: Any) -> str:
    names = {dict: "mapping", list: "list", str: "text", bool: "true/false", type(None): "nothing"}
    return names.get(type(value), "whole number" if isinstance(value, int) else "number")


def _check_type(
    value: Any, kind: Any, key: str, places: dict[str, str], problems: list[str]
) -> None:
    """Append to `problems` what in `value` does not fit the annotation `kind`."""

    def wrong(expected: str) -> None:
        problems.append(
            f"{_place(key, places)}{key}: {value!r} is {_kind(value)}, {expected} is expected"
        )

    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            return wrong("a mapping")
        hints = typing.get_type_hints(kind)
        for name, item in value.items():
            path = f"{key}.{name}" if key else str(name)
            if name not in hints:
                problems.append(_unknown(str(name), item, path, hints, places))
            else:
                _check_type(item, hints[name], path, places, problems)
        for option in dataclasses.fields(kind):
            choices, chosen = option.metadata.get("choices"), value.get(option.name)
            if choices and isinstance(chosen, str) and chosen not in choices:
                path = f"{key}.{option.name}" if key else option.name
                problems.append(
                    f"{_place(path, places)}{path}: {chosen!r} is not one of {', '.join(choices)}"
                )
    elif origin is dict:
        if not isinstance(value, dict):
            return wrong("a mapping")
        for name, item in value.items():
            _check_type(item, typing.get_args(kind)[1], f"{key}.{name}", places, problems)
    elif origin is list:
        if not isinstance(value, list):
            return wrong("a list")
        for n, item in enumerate(value):
            _check_type(item, typing.get_args(kind)[0], f"{key}.{n}", places, problems)
    elif kind is bool:
        if not isinstance(value, bool):
            wrong("true or false")
    elif kind is int:
        if isinstance(value, bool) or not isinstance(value, int):
            wrong("a whole number")
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            wrong("a number")
        elif not math.isfinite(value):
            wrong("a finite number")
    elif kind is str and (isinstance(value, bool) or not isinstance(value, str | int | float)):
        wrong("text")


def _unknown(
    name: str, value: Any, path: str, hints: dict[str, Any], places: dict[str, str]
) -> str:
    """Return the message for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, hints, n=1, cutoff=0.5)
    everywhere = {known.rsplit(".", 1)[-1]: known for known in _known_keys(Recipe)}
    parent = path.rpartition(".")[0]
    if near:
        hint = f"did you mean `{parent + '.' if parent else ''}{near[0]}`?"
    elif name in everywhere:
        hint = f"did you mean `{everywhere[name]}`?"
    else:
        hint = f"valid keys here: {', '.join(hints)}"
    return f"{_place(path, places)}{path}: unknown key (value {value!r}); {hint}"


def _known_keys(kind: Any, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in typing.get_type_hints(kind).items():
        inner = [a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)]
        keys.append(prefix + name)
        for item in inner:
            middle = "" if item is hint else ("NAME." if typing.get_origin(hint) is dict else "0.")
            keys += _known_keys(item, f"{prefix}{name}.{middle}")
    return keys


def _impossible(recipe: Recipe) -> list[tuple[str, str]]:
    """Return (key, reason) for every value or combination that cannot be trained."""
    bad: list[tuple[str, str]] = []

    def require(holds: bool, key: str, reason: str) -> None:
        if not holds:
            bad.append((key, reason))

    require(
        bool(NAME.fullmatch(recipe.run_name)),
        "run_name",
        f"{recipe.run_name!r}: use letters, digits, `.`, `_` and `-`, a letter or digit first",
    )
    require(0 <= recipe.seed < 2**63, "seed", "must lie in 0 .. 2^63 - 1")
    require(
        bool(recipe.tokenizer), "tokenizer", "is missing: a tokenizer.json or a folder with one"
    )
    model = recipe.model
    for name in ("layers", "hidden_size", "heads", "intermediate_size", "global_every"):
        require(getattr(model, name) > 0, f"model.{name}", "must be positive")
    if model.heads > 0 and model.hidden_size > 0:
        require(
            model.hidden_size % (2 * model.heads) == 0,
            "model.heads",
            f"{model.heads} heads do not cut hidden_size {model.hidden_size} into even head sizes",
        )
    require(
        model.local_window >= 2 and model.local_window % 2 == 0,
        "model.local_window",
        f"{model.local_window}: must be even and at least 2, half of it lies on either side",
    )
    require(model.rope_base_local > 0, "model.rope_base_local", "must be positive")
    require(
        0 < model.rope_fraction <= 1
        and (model.heads <= 0 or model.positions == "alibi" or model.rope_channels > 0),
        "model.rope_fraction",
        f"{model.rope_fraction}: must lie in (0, 1] and turn two channels of a head at least",
    )
    require(
        not (model.positions == "alibi" and model.rope_fraction != 1),
        "model.rope_fraction",
        "nothing reads it with model.positions: alibi",
    )
    require(
        not (model.norm == "rmsnorm" and model.norm_bias),
        "model.norm_bias",
        "an rmsnorm has no bias",
    )
    require(
        model.decoder_bias or not recipe.init.log_unigram_bias,
        "init.log_unigram_bias",
        "needs model.decoder_bias: true",
    )
    require(
        not (recipe.init.weights and recipe.init.log_unigram_bias),
        "init.log_unigram_bias",
        "would replace the decoder's bias of init.weights",
    )
    compute = recipe.compute
    require(compute.recompute_every >= 0, "compute.recompute_every", "must not be negative")
    require(compute.logits_mb > 0, "compute.logits_mb", "must be positive")
    require(model.norm_eps > 0, "model.norm_eps", "must be positive")
    require(0 <= model.attention_dropout < 1, "model.attention_dropout", "must lie in [0, 1)")
    optimizer = recipe.optimizer
    require(optimizer.lr > 0, "optimizer.lr", f"{optimizer.lr}: must be positive")
    require(
        len(optimizer.betas) == 2 and all(0 <= beta < 1 for beta in optimizer.betas),
        "optimizer.betas",
        f"{optimizer.betas}: two numbers in [0, 1)",
    )
    require(optimizer.eps > 0, "optimizer.eps", "must be positive")
    require(0 <= optimizer.weight_decay < 1, "optimizer.weight_decay", "must lie in [0, 1)")
    data = recipe.data
    require(bool(data.streams), "data.streams", "is missing: name at least one data set")
    for name in ("lanes", "buffer_rows", "tokens_per_document_min"):
        require(getattr(data, name) > 0, f"data.{name}", "must be positive")
    for name in ("shuffle_block_documents", "shuffle_shards"):
        require(getattr(data, name) > 0, f"data.{name}", "must be positive")
    require(data.workers >= 0, "data.workers", "must not be negative")
    for section, streams in (("data", data.streams), ("evaluation", recipe.evaluation.streams)):
        for name, stream in streams.items():
            require(bool(stream.path), f"{section}.streams.{name}.path", "is missing")
    require(bool(recipe.phases), "phases", "is missing: describe at least one phase")
    require(
        len(recipe.phases) <= 1,
        "phases",
        "this version trains one phase; run the later ones from the first one's export",
    )
    for n, phase in enumerate(recipe.phases):
        for key, reason in _impossible_phase(phase, data):
            bad.append((f"phases.{n}.{key}", reason))
    evaluation = recipe.evaluation
    require(evaluation.every_steps > 0, "evaluation.every_steps", "must be positive")
    require(evaluation.rows > 0, "evaluation.rows", "must be positive")
    require(0 < evaluation.mask_rate < 1, "evaluation.mask_rate", "must lie in (0, 1)")
    require(recipe.checkpoint.every_steps > 0, "checkpoint.every_steps", "must be positive")
    require(recipe.checkpoint.keep > 0, "checkpoint.keep", "must be positive")
    require(recipe.logging.every_steps > 0, "logging.every_steps", "must be positive")
    return bad


def _impossible_phase(phase: PhaseConfig, data: DataConfig) -> list[tuple[str, str]]:
    bad: list[tuple[str, str]] = []
    slots = {}
    for key, text in (
        ("slots", phase.slots),
        ("schedule.warmup", phase.schedule.warmup),
        ("schedule.decay", phase.schedule.decay),
    ):
        try:
            slots[key] = parse_slots(text)
        except ValueError as error:
            bad.append((key, str(error)))
    if not NAME.fullmatch(phase.name) or phase.name.isdigit():
        bad.append(("name", f"{phase.name!r}: use letters, digits, `.`, `_` and `-`"))
    if slots.get("slots") == 0:
        bad.append(("slots", "is missing: the phase's length, for instance 50B"))
    for key in ("batch_rows", "micro_batch_rows"):
        if getattr(phase, key) <= 0:
            bad.append((key, "must be positive"))
    if phase.sequence_length < 3:
        bad.append(("sequence_length", "must hold [CLS], a token and [SEP]: at least 3"))
    if phase.row_tokens < phase.sequence_length:
        bad.append(
            (
                "row_tokens",
                f"{phase.row_tokens} is less than sequence_length {phase.sequence_length}",
            )
        )
    elif phase.row_tokens // data.tokens_per_document_min < 1 <= data.tokens_per_document_min:
        bad.append(("row_tokens", "is less than data.tokens_per_document_min"))
    if phase.rope_base_global <= 0:
        bad.append(("rope_base_global", "must be positive"))
    if phase.z_loss < 0:
        bad.append(("z_loss", "must not be negative"))
    if not phase.mixture:
        bad.append(("mixture", "is missing: the share of tokens of each stream"))
    for name, share in phase.mixture.items():
        if name not in data.streams:
            near = difflib.get_close_matches(name, data.streams, n=1, cutoff=0)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            bad.append((f"mixture.{name}", f"no such stream in data.streams{hint}"))
        if share < 0:
            bad.append((f"mixture.{name}", f"{share}: a share is not negative"))
    if phase.mixture and sum(phase.mixture.values()) <= 0:
        bad.append(("mixture", "at least one share must be positive"))
    mask = phase.mask
    if not 0 < mask.rate < 1:
        bad.append(("mask.rate", f"{mask.rate}: must lie in (0, 1)"))
    if min(mask.mask_share, mask.random_share) < 0 or mask.mask_share + mask.random_share > 1:
        bad.append(
            ("mask.mask_share", "mask_share and random_share lie in [0, 1] and add up to <= 1")
        )
    schedule = phase.schedule
    if {"slots", "schedule.warmup", "schedule.decay"} <= slots.keys() and (
        slots["schedule.warmup"] + slots["schedule.decay"] > slots["slots"]
    ):
        bad.append(
            (
                "schedule",
                f"warmup {schedule.warmup} and decay {schedule.decay} exceed {phase.slots}",
            )
        )
    if not 0 <= schedule.final_factor <= 1:
        bad.append(("schedule.final_factor", "must lie in [0, 1]"))
    return bad
