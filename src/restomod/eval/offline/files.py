"""Long documents: whole Python files, and one docstring that was cut out of each.

In: a Python file's bytes. Out: the file without any docstring, and the longest first paragraph
among those docstrings, which tells of one part of the file: so all of it has to be read, as in
MLDR. `build.py` calls this.
"""

from __future__ import annotations

from restomod.eval.offline.functions import (
    docstring_lines,
    docstring_nodes,
    docstring_text,
    first_paragraph,
    is_query,
    parse,
)

MIN_CHARACTERS = 6_000
MAX_CHARACTERS = 28_000
"""About 2,000 and 8,192 tokens of code; what is longer is left out, not cut."""


def long_document(source: bytes) -> tuple[str, str] | None:
    """Return (query, document), None for a file that is no good for it. Raises SyntaxError or
    ValueError for what this Python cannot parse."""
    if not MIN_CHARACTERS <= len(source) <= 4 * MAX_CHARACTERS:
        return None
    tree = parse(source)
    lines = source.decode().split("\n")
    removed = docstring_lines(tree, lines)
    summaries = (first_paragraph(docstring_text(node)) for node in docstring_nodes(tree))
    query = max(filter(is_query, summaries), key=len, default="")
    if removed is None or not query:
        return None
    text = "\n".join(line for n, line in enumerate(lines, 1) if n not in removed).strip("\n")
    return (query, text) if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS else None
