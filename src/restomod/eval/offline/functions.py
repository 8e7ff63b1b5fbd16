"""Functions and what their docstrings say of them.

In: a Python file's bytes. Out: its functions and methods, each without docstrings and once more
without its name, beside the first paragraph of its docstring. `build.py` calls this.

Traps that this closes: a docstring left in the code, those of inner functions too, makes retrieval
a search for equal text; a name is often the docstring's verb and noun (`def load_file`), which is
why the code without its name is what tasks use; functions inside functions would be there twice.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

MIN_QUERY_WORDS = 5
MIN_QUERY_CHARACTERS = 30
MAX_QUERY_CHARACTERS = 600
MIN_BODY_LINES = 3
"""Lines of a function below its signature, without the docstring."""
MAX_CHARACTERS = 6_000
HIDDEN = "_"
"""What stands where a function's name stood."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Documented:
    """A function or method."""

    name: str
    """Qualified, as in Class.method."""
    docstring: str
    """All of it."""
    summary: str
    """Its first paragraph, on one line."""
    code: str
    """Source without docstrings."""
    nameless: str
    """The same, `_` for the function's name wherever it stands."""


def documented_functions(source: bytes) -> list[Documented]:
    """Return the functions worth asking for, in the order of the file. Raises SyntaxError or
    ValueError for what this Python cannot parse."""
    tree = parse(source)
    lines = source.decode().split("\n")
    found = []
    for name, node in _functions(tree.body, ""):
        docstring = ast.get_docstring(node) or ""
        summary = first_paragraph(docstring)
        if node.name.startswith("__") or not is_query(summary):
            continue
        code = _source(node, lines)
        if code is None or len(code) > MAX_CHARACTERS:
            continue
        nameless = re.sub(rf"\b{re.escape(node.name)}\b", HIDDEN, code)
        found.append(Documented(name, docstring, summary, code, nameless))
    return found


def parse(source: bytes) -> ast.Module:
    """Parse a file, without the warnings that old code causes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def first_paragraph(text: str) -> str:
    """Return what stands before the first empty line, on one line."""
    return " ".join(re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0].split())


def is_query(text: str) -> bool:
    """Return whether a text is a sentence that something can be looked for with."""
    letters = sum(c.isascii() and (c.isalpha() or c == " ") for c in text)
    return (
        MIN_QUERY_CHARACTERS <= len(text) <= MAX_QUERY_CHARACTERS
        and len(text.split()) >= MIN_QUERY_WORDS
        and letters > 0.7 * len(text)
    )


def _functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Function]]:
    """Yield functions of the module and methods of its classes with their qualified names."""
    for node in body:
        if isinstance(node, Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")


def _source(node: Function, lines: list[str]) -> str | None:
    """Return a function's source without docstrings; None for one that is too short, or that cannot
    be cut apart by lines."""
    assert node.end_lineno is not None
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    removed = docstring_lines(node, lines)
    if removed is None:
        return None
    own = range(node.body[0].lineno, node.end_lineno + 1)
    if sum(bool(lines[n - 1].strip()) and n not in removed for n in own) < MIN_BODY_LINES:
        return None
    kept = [lines[n - 1] for n in range(first, node.end_lineno + 1) if n not in removed]
    return textwrap.dedent("\n".join(kept)).strip("\n")


def docstring_lines(tree: ast.AST, lines: list[str]) -> set[int] | None:
    """Return the numbers of the lines that docstrings take, at any depth; None if one shares a line
    with code."""
    removed: set[int] = set()
    for node in docstring_nodes(tree):
        assert node.end_lineno is not None
        before = lines[node.lineno - 1].encode()[: node.col_offset].strip()
        after = lines[node.end_lineno - 1].encode()[node.end_col_offset :].strip()
        if before or after:
            return None
        removed |= set(range(node.lineno, node.end_lineno + 1))
    return removed


def docstring_nodes(tree: ast.AST) -> Iterator[ast.Expr]:
    """Yield the docstrings of a tree: of the module, of classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first


def docstring_text(node: ast.Expr) -> str:
    """Return a docstring as it reads."""
    assert isinstance(node.value, ast.Constant)
    return inspect.cleandoc(str(node.value.value))
