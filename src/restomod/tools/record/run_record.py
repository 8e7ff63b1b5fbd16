"""All that a page says of one run, read from its folder.

In: a run folder with metrics.jsonl, and when present config.yaml (the resolved recipe) and
evaluation.json. Out: a `RunRecord`; what cannot be read is left out, and its notices say so. It may
be read at any time of a run. Reports and a sweep's page call this.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from restomod.errors import UserError
from restomod.tools.record.metrics_log import RunLog, number, numbers, read_log
from restomod.units import parse_slots

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class AskedPhase:
    """One phase of the recipe: its length in token slots, its mixture as shares that sum to 1."""

    name: str
    slots: float | None
    mixture: dict[str, float]


@dataclass(frozen=True)
class RunRecord:
    """One run."""

    folder: Path
    name: str
    log: RunLog
    asked: list[AskedPhase]
    config_text: str
    config: dict[str, Any]
    """The resolved recipe; empty where it cannot be read."""
    evaluation: dict[str, Any]
    """What `restomod eval` found; empty where nothing was evaluated."""
    notices: list[str]
    updated: datetime
    """When the log was last written."""

    @property
    def planned(self) -> float:
        """Token slots of all phases; 0 if unknown."""
        return sum(phase.slots or 0 for phase in self.asked)


def read_run(folder: Path) -> RunRecord:
    """Read a run; raises UserError when the folder holds no metrics.jsonl."""
    metrics = folder / METRICS
    if not metrics.is_file():
        raise UserError(
            f"{folder} is not a run folder: it holds no {METRICS}; "
            "give the folder of a run, such as runs/NAME"
        )
    updated = datetime.fromtimestamp(metrics.stat().st_mtime, UTC)
    log = read_log(metrics)
    notices = _log_notices(log)
    text, config = read_config(folder, notices)
    evaluation = _evaluation(folder / "evaluation.json", notices)
    name = config.get("run_name")
    name = name if isinstance(name, str) and name else folder.resolve().name
    asked = asked_phases(config, log)
    return RunRecord(folder, name, log, asked, text, config, evaluation, notices, updated)


def asked_phases(config: dict[str, Any], log: RunLog) -> list[AskedPhase]:
    """Read the phases of a resolved recipe, with the shares of tokens that each mixture asks for:
    from the log, which knows them where the recipe counts in documents or repeats."""
    phases = config.get("phases")
    result = []
    for phase in phases if isinstance(phases, list) else ():
        if isinstance(phase, dict):
            shares = {k: v for k, v in numbers(phase.get("mixture")).items() if v >= 0}
            total = sum(shares.values())
            mixture = {k: v / total for k, v in shares.items()} if total > 0 else {}
            name = str(phase.get("name", ""))
            mixture = log.asked.get(name, mixture)
            result.append(AskedPhase(name, _slots(phase.get("slots")), mixture))
    return result


def _slots(value: Any) -> float | None:
    try:
        return number(parse_slots(value))
    except ValueError:
        return None


def _log_notices(log: RunLog) -> list[str]:
    notices = []
    if not log.train_lines:
        notices.append("No training step has been logged yet.")
    if log.cut_short:
        notices.append("The last line of metrics.jsonl is cut short, as a killed run leaves it.")
    unreadable = log.unreadable - log.cut_short
    if unreadable:
        lines = "1 line" if unreadable == 1 else f"{unreadable:,} lines"
        notices.append(f"{lines} of metrics.jsonl could not be read and were left out.")
    if log.nonfinite_losses:
        first = "" if log.nonfinite_step is None else f", first at step {log.nonfinite_step:,.0f}"
        notices.append(f"The loss was not finite in {log.nonfinite_losses:,} logged steps{first}.")
    return notices


def read_config(folder: Path, notices: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the resolved recipe, as it stands in the folder and as read; add what is wrong."""
    path = folder / "config.yaml"
    if not path.is_file():
        notices.append("The folder holds no config.yaml: the recipe is unknown.")
        return "", {}
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        notices.append("config.yaml is not valid YAML: it is shown as it is, and otherwise unused.")
        config = None
    return text, config if isinstance(config, dict) else {}


def _evaluation(path: Path, notices: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError):
        evaluation = None
    if not isinstance(evaluation, dict):
        notices.append("evaluation.json could not be read and was left out.")
        return {}
    return evaluation
