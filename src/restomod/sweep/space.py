"""What a sweep tries: W&B's distributions in terms of Optuna's.

In: the `parameters` of a sweep file. Out: distributions, the points of a grid, and a trial's values
as `train.py` takes them. `file.py` checks with it, `study.py` draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from restomod.strict import LARGEST

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DISTRIBUTIONS = (
    "constant",
    "categorical",
    "uniform",
    "int_uniform",
    "q_uniform",
    "log_uniform",
    "log_uniform_values",
)
"""Those of W&B's that can be drawn from here."""
WANDBS_ONLY = {"wandbs_only": True}
"""Marks keys that W&B's schema has, and that are refused here by name."""


@dataclass
class Parameter:
    """What is tried for one recipe key: `value`, `values`, or `min` and `max`."""

    value: Any = None
    """The same in all trials."""
    values: Any = None
    """One of these."""
    min: Any = None
    """The least; of whole numbers if min and max are whole. For log_uniform its logarithm."""
    max: Any = None
    """The most, itself included."""
    distribution: str = ""
    """constant, categorical, uniform, int_uniform, q_uniform (multiples of q), log_uniform_values,
    or log_uniform (min and max are natural logarithms)."""
    q: Any = None
    """Step of q_uniform; 1 by default."""
    probabilities: Any = field(default=None, metadata=WANDBS_ONLY)
    parameters: Any = field(default=None, metadata=WANDBS_ONLY)
    mu: Any = field(default=None, metadata=WANDBS_ONLY)
    sigma: Any = field(default=None, metadata=WANDBS_ONLY)
    a: Any = field(default=None, metadata=WANDBS_ONLY)
    b: Any = field(default=None, metadata=WANDBS_ONLY)

    @property
    def kind(self) -> str:
        """The distribution, named or implied."""
        if self.distribution:
            return self.distribution
        if self.value is not None:
            return "constant"
        if self.values is not None:
            return "categorical"
        whole = isinstance(self.min, int) and isinstance(self.max, int)
        return "int_uniform" if whole else "uniform"

    @property
    def choices(self) -> list[Any]:
        """All values of a constant or categorical parameter; lists and mappings as text."""
        values = [self.value] if self.kind == "constant" else self.values
        return [v if isinstance(v, str | int | float | bool) else str(v) for v in values]


def impossible_parameter(parameter: Parameter, method: str) -> list[tuple[str, str]]:
    """Return (key, reason) for what cannot be tried; an empty key is the parameter itself."""
    kind = parameter.kind
    if kind not in DISTRIBUTIONS:
        return [("distribution", f"{kind!r}: only {', '.join(DISTRIBUTIONS)} can be drawn from")]
    if kind == "constant":
        given = {"value"}
    elif kind == "categorical":
        given = {"values"}
    else:
        given = {"min", "max"}
    allowed = given | ({"q"} if kind == "q_uniform" else set())
    there = {n for n in ("value", "values", "min", "max", "q") if getattr(parameter, n) is not None}
    bad = [(name, f"nothing reads it with {kind}") for name in sorted(there - allowed)]
    if missing := sorted(given - there):
        bad.append(("", f"{' and '.join(missing)}: missing; give value, values, or min and max"))
    if bad:
        return bad
    if kind == "categorical":
        return _impossible_values(parameter.values)
    if kind == "constant":
        return []
    if method == "grid":
        return [("", "a grid needs the values themselves: list them as `values`")]
    return _impossible_range(parameter)


def _impossible_values(values: Any) -> list[tuple[str, str]]:
    if not isinstance(values, list) or not values:
        return [("values", f"{values!r}: a list of values is expected")]
    if any(value is None for value in values):
        return [("values", "null cannot be given to train.py")]
    words = [str(value) for value in values]
    twice = next((word for n, word in enumerate(words) if word in words[:n]), None)
    return [("values", f"{twice} is there twice")] if twice else []


def _impossible_range(parameter: Parameter) -> list[tuple[str, str]]:
    kind, low, high = parameter.kind, parameter.min, parameter.max
    for name in ("min", "max", "q"):
        value = getattr(parameter, name)
        if value is not None and not _is_number(value):
            return [(name, f"{value!r}: a finite number is expected")]
        if kind == "int_uniform" and name != "q" and not isinstance(value, int):
            return [(name, f"{value!r}: a whole number is expected")]
    if low > high:
        return [("min", f"{low} is above max {high}")]
    if kind == "log_uniform_values" and low <= 0:
        return [("min", f"{low}: must be positive, on a logarithmic scale")]
    if kind == "log_uniform" and max(abs(low), abs(high)) > 100:
        return [("max", f"e^{high}: min and max are natural logarithms; see log_uniform_values")]
    if kind == "q_uniform":
        step = parameter.q or 1
        if step <= 0 or math.ceil(low / step) > math.floor(high / step):
            return [("q", f"no multiple of {step} lies between {low} and {high}")]
    return []


def _is_number(value: Any) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and abs(value) <= LARGEST


def distribution(parameter: Parameter) -> BaseDistribution:
    """Return Optuna's distribution for a parameter."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    kind, low, high = parameter.kind, parameter.min, parameter.max
    if kind in ("constant", "categorical"):
        return CategoricalDistribution(parameter.choices)
    if kind == "int_uniform":
        return IntDistribution(low, high)
    if kind == "q_uniform":
        step = parameter.q or 1
        first, last = math.ceil(low / step), math.floor(high / step)
        return FloatDistribution(first * step, last * step, step=step)
    if kind == "log_uniform":
        return FloatDistribution(math.exp(low), math.exp(high), log=True)
    return FloatDistribution(low, high, log=kind == "log_uniform_values")


def grid(parameters: dict[str, Parameter]) -> dict[str, list[Any]]:
    """Return the values of every parameter of a grid."""
    return {key: parameter.choices for key, parameter in parameters.items()}
