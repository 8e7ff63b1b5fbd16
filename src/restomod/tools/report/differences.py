"""Compare resolved recipes: a row for each key in which any two differ.

In: recipes as read, by name. Out: a table as HTML. `compare.py` and a sweep's page call this.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

from restomod.config import PhaseConfig
from restomod.recipe import flatten
from restomod.tools.pages.markup import table

PHASE_DEFAULTS = flatten(PhaseConfig())


def differences(recipes: Mapping[str, Mapping[str, Any]], ignored: Collection[str] = ()) -> str:
    """Return the table; nothing where no keys but `ignored` ones differ. Empty recipes are left
    out: they could not be read. Of a phase that not all recipes have, defaults are left out."""
    flat = {name: flatten(dict(recipe)) for name, recipe in recipes.items() if recipe}
    keys = dict.fromkeys(key for recipe in flat.values() for key in recipe)

    def cell(value: Any) -> str:
        if value is None:
            return ""
        return escape(f"{value:.6g}" if isinstance(value, float) else str(value))

    rows = [
        [escape(key), *(cell(recipe.get(key)) for recipe in flat.values())]
        for key in keys
        if key not in ignored
        and len({str(recipe.get(key)) for recipe in flat.values()}) > 1
        and not _is_default_of_some(key, list(flat.values()))
    ]
    if not rows:
        return ""
    return table(["key", *flat], rows, "What differs between the recipes", "named")


def _is_default_of_some(key: str, flat: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a key is of a phase that only some recipes have, and its default there."""
    values = [recipe[key] for recipe in flat if key in recipe]
    if not key.startswith("phases.") or len(values) == len(flat):
        return False
    return any(
        key.endswith(f".{name}") and all(value == default for value in values)
        for name, default in PHASE_DEFAULTS.items()
    )
