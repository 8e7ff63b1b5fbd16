"""The numbers of a line of metrics.jsonl by the names under which W&B and TensorBoard show them.

In: a line. Out: numbers by name. `tensorboard.py` and `wandb_process.py` call it.
"""

from __future__ import annotations

from typing import Any

AXES = ("step", "tokens", "time_s")
"""Fields that every line may have: where it stands, rather than what it says."""


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """Return `train/FIELD`, `mixture/STREAM` and the like, `eval/DOMAIN/FIELD`,
    `eval/VIEW/DOMAIN/FIELD`, `probe/NAME/FIELD`, `hook/NAME/FIELD`; of any other event
    `events/EVENT`, which is 1, and `EVENT/FIELD`."""
    event = line["event"]
    if event == "eval":
        found = _held_out("eval", line["domains"]) | _held_out("probe", line.get("probes", {}))
        found |= _held_out("hook", line.get("hooks", {}))
        for view, domains in line.get("views", {}).items():
            found |= _held_out(f"eval/{view}", domains)
        return found
    fields = {name: value for name, value in line.items() if name not in AXES}
    found = {f"{event}/{name}": value for name, value in fields.items() if _is_number(value)}
    if event == "samples":
        return {}
    if event in ("start", "resume"):
        return {f"events/{event}": 1.0}
    if event != "train":
        return {f"events/{event}": 1.0, **found}
    for name, values in fields.items():
        if isinstance(values, dict):
            found |= {f"{name}/{k}": value for k, value in values.items() if _is_number(value)}
    return found


def _held_out(prefix: str, groups: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {
        f"{prefix}/{group}/{name}": value
        for group, values in groups.items()
        for name, value in values.items()
        if _is_number(value)
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
