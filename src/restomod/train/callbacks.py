"""Callbacks of the user's own: built, told where they write, their state kept in checkpoints.

In: the recipe's `callbacks`. Out: Composer callbacks, which `builder.py` adds before what saves.
"""

from __future__ import annotations

import json
from typing import Any

from composer import Callback

from restomod.config import Recipe
from restomod.errors import UserError
from restomod.extensions import make
from restomod.train.metrics import MetricsLog


class UserCallbacks:
    """All of a run's.

    One that has `attach(recipe, write)` is given the recipe, and `write(event, **fields)`, which
    writes a line of metrics.jsonl (on rank 0), before training begins. What its `state_dict()`
    returns must be JSON; a resumed run gives it to `load_state_dict`.
    """

    def __init__(self, recipe: Recipe, metrics: MetricsLog, saved: dict[str, Any]) -> None:
        self.callbacks: dict[str, Callback] = {
            name: make(given) for name, given in recipe.callbacks.items()
        }
        for name, callback in self.callbacks.items():
            if hasattr(callback, "attach"):
                callback.attach(recipe, metrics.write)
            if saved.get(name):
                callback.load_state_dict(saved[name])
            _check_state(name, callback)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each that has one, by name."""
        states = {name: callback.state_dict() for name, callback in self.callbacks.items()}
        return {name: state for name, state in states.items() if state}


def _check_state(name: str, callback: Callback) -> None:
    """Raise UserError where a callback's state would not come back from a checkpoint as it was."""
    try:
        state = callback.state_dict()
    except Exception:  # it may need what only training gives it
        return
    try:
        json.dumps(state)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"callbacks.{name}: its state_dict() must be JSON: {error}; return numbers, texts, "
            "lists and mappings of them"
        ) from error
