"""Pages that mkdocs makes rather than finds: the configuration's reference, out of the dataclasses,
the list of modules, out of their doc strings, and ARCHITECTURE.md, which lies at the root.

mkdocs calls `on_files` (`hooks` in mkdocs.yml); tests read `configuration` and `modules` too.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
import typing
from pathlib import Path
from typing import Any

SECTIONS = (
    ("Recipes", "restomod.config", "Recipe", "`python train.py RECIPE.yaml [key=value ...]`"),
    ("Preparations", "restomod.prepare.config", "Preparation", "`restomod prepare RECIPE.yaml`"),
    (
        "Fine-tunings",
        "restomod.finetune.config",
        "FinetuneConfig",
        "`restomod finetune CONFIG.yaml [key=value ...]`",
    ),
    ("Sweeps", "restomod.sweep.file", "SweepFile", "`restomod sweep FILE.yaml`"),
    ("Suites", "restomod.eval.suite", "Suite", "`restomod eval MODEL --suite FILE.yaml`"),
    ("Cluster profiles", "restomod.launch.profile", "Profile", "`restomod launch --profile FILE`"),
)
"""Heading, module, the dataclass that its YAML fills, and who reads that."""
HEAD = """# Configuration

Every key of every YAML, with its default, out of the dataclasses that read them. An unknown key, a
wrong type or an impossible value is refused with file, line and the nearest key.
"""


ROOT = Path(__file__).parents[1]
FOLDERS = (
    *("", "prepare", "harvest", "data", "model", "model/attention", "kernels", "optim", "train"),
    *("train/checkpoints", "train/faults", "train/watching", "eval", "eval/offline", "finetune"),
    *("vectors", "tools", "tools/plan", "tools/doctor", "tools/record", "tools/report"),
    *("tools/pages", "tools/export", "sweep", "launch"),
)
"""Of src/restomod, in the order in which data flows through them."""
MODULES = """# All modules

The first sentence of every module of `src/restomod/`, folder by folder, in the order in which data
flows. [Architecture](architecture.md) has the map.
"""


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    files.append(File.generated(config, "configuration.md", content=configuration()))
    files.append(File.generated(config, "modules.md", content=modules()))
    architecture = ROOT / "ARCHITECTURE.md"
    files.append(File.generated(config, "architecture.md", content=architecture.read_text()))
    return files


def configuration() -> str:
    """Return the page."""
    parts = [HEAD]
    for title, module, name, reader in SECTIONS:
        root = getattr(__import__(module, fromlist=[name]), name)
        parts.append(f"## {title}\n\nFor {reader}; `{module}.{name}`.\n")
        parts += [_section(prefix, kind) for prefix, kind in _dataclasses(root)]
    return "\n".join(parts)


def modules() -> str:
    """Return the page of all modules."""
    parts = [MODULES]
    for folder in FOLDERS:
        parts.append(f"## `{folder or 'restomod'}/`\n\n| module | what it is |\n| --- | --- |")
        for path in sorted((ROOT / "src" / "restomod" / folder).glob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text()))
            if text:
                parts.append(f"| `{path.name}` | {_first_sentence(text)} |")
        parts.append("")
    return "\n".join(parts)


def _first_sentence(text: str) -> str:
    """Return it for a cell of a table; `et al. 2024` is not its end."""
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z`])", text, maxsplit=1)[0]
    return " ".join(sentence.split()).replace("|", "\\|")


def _dataclasses(root: type, prefix: str = "") -> list[tuple[str, type]]:
    """Return all dataclasses below one, each with the key that leads there."""
    found = [(prefix, root)]
    for key, kind in typing.get_type_hints(root).items():
        inner, suffix = _inner(kind)
        if inner:
            found += _dataclasses(inner, f"{prefix}{'.' if prefix else ''}{key}{suffix}")
    return found


def _inner(kind: Any) -> tuple[type | None, str]:
    """Return the dataclass that a field holds, and what stands between its key and theirs."""
    if dataclasses.is_dataclass(kind):
        return typing.cast(type, kind), ""
    arguments = typing.get_args(kind)
    if type(None) in arguments:
        return _inner(arguments[0])
    if arguments and dataclasses.is_dataclass(arguments[-1]):
        return typing.cast(type, arguments[-1]), ".NAME" if len(arguments) == 2 else "[n]"
    return None, ""


def _section(prefix: str, kind: type) -> str:
    meanings = field_docs(kind)
    hints = typing.get_type_hints(kind)
    lines = [f"### `{prefix}`\n" if prefix else "", inspect.cleandoc(kind.__doc__ or ""), ""]
    rows = []
    for field in dataclasses.fields(kind):
        if _inner(hints[field.name])[0] or field.metadata.get("wandbs_only"):
            continue
        text = " ".join(meanings.get(field.name, "").split())
        choices = field.metadata.get("choices")
        if choices:
            shown = (choice or '""' for choice in choices)
            text += f" One of {', '.join(f'`{choice}`' for choice in shown)}."
        cells = (f"`{field.name}`", _default(field), text.replace("|", "\\|"))
        rows.append(f"| {' | '.join(cells)} |")
    if rows:
        lines += ["| key | default | meaning |", "| --- | --- | --- |", *rows]
    inner = [f.name for f in dataclasses.fields(kind) if _inner(hints[f.name])[0]]
    if inner:
        lines += ["", f"Sections below it: {', '.join(f'`{name}`' for name in inner)}."]
    return "\n".join(lines) + "\n"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "needed"
    return f"`{json.dumps(value, default=str)}`"


def field_docs(kind: type) -> dict[str, str]:
    """Return the doc string under each field of a dataclass, its bases' too."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                found[statement.target.id] = after.value.value
    return found
