"""What a suite found, as JSON and as Markdown.

In: per-query scores of every system on every task. Out: results.json with all means, errors,
differences and their p-values, and results.md, the same for people. `run.py` calls this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from restomod.eval.statistics import bootstrap_interval, compare, standard_error
from restomod.units import counted

NOTES = (
    "Intervals are at 95 %, from 2,000 bootstrap samples of queries and of seeds. A difference is "
    "followed by its standard error, over queries and seeds, and in brackets by the one that takes "
    "whole packages or files as drawn. p: paired sign flips over queries, or McNemar's exact test "
    "for right and wrong answers of one seed each, Welch's t over seeds for fine-tuning. No figure "
    "here knows how another training run of the same recipe would have scored."
)
PRIMARY = {"retrieval": "mrr", "classification": "accuracy", "mteb": "ndcg_at_10"}
"""Of the kinds whose tasks do not choose it themselves."""


@dataclass
class TaskScores:
    """One task, scored."""

    name: str
    kind: str
    about: dict[str, Any]
    """Of the data: sizes, fingerprint, sources."""
    groups: list[str] = field(default_factory=list)
    """Of each query, if known."""
    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """System -> metric -> [seeds, queries]."""
    skipped: str = ""
    """Why the task was left out; empty if it was not."""
    metric: str = ""
    """The one that counts; what is usual for the kind by default."""

    @property
    def primary(self) -> str:
        """Name of the metric that counts."""
        return self.metric or PRIMARY[self.kind]


def against(system: str, baseline: str, systems: Sequence[str]) -> str:
    """Return what a system is compared with: the baseline that had the same treatment (`X, tuned`
    with `BASELINE, tuned`) if it is there, else the plain one."""
    _, comma, treatment = system.partition(", ")
    same = f"{baseline}{comma}{treatment}"
    return same if same in systems else baseline


def summarise(task: TaskScores, baseline: str) -> dict[str, Any]:
    """Return a task's part of results.json."""
    if task.skipped:
        return {"kind": task.kind, "skipped": task.skipped}
    systems = {}
    for system, metrics in task.scores.items():
        primary = metrics[task.primary]
        entry: dict[str, Any] = {
            "scores": {name: float(values.mean()) for name, values in metrics.items()},
            "standard_error": standard_error(primary),
            "interval_95": bootstrap_interval(primary),
            "per_seed": primary.mean(1).tolist(),
        }
        other = against(system, baseline, list(task.scores))
        if other in task.scores and other != system:
            theirs = task.scores[other][task.primary]
            answers = task.kind == "classification"
            difference = compare(primary, theirs, task.groups, answers=answers)
            entry["difference"] = {"from": other, **asdict(difference)}
        systems[system] = entry
    queries = next(iter(task.scores.values()))[task.primary].shape[1] if task.scores else 0
    return {
        "kind": task.kind,
        "metric": task.primary,
        "queries": queries,
        "data": task.about,
        "systems": systems,
    }


def markdown(results: dict[str, Any]) -> str:
    """Write the results for people."""
    lines = [f"# {results['suite']}", ""]
    lines += [text + "\n" for text in (results["description"], results["note"]) if text]
    lines += [f"    {results['command']}", ""]
    for name, task in results["tasks"].items():
        lines += [f"## {name}", ""]
        if "skipped" in task:
            lines += [f"Left out: {task['skipped']}", ""]
            continue
        lines += [_about(task), "", *_table(task), ""]
    lines += [
        NOTES,
        "",
        "## Systems",
        "",
        *(f"- **{name}**: {_words(about)}" for name, about in results["systems"].items()),
        "",
        _words(results["versions"]),
    ]
    return "\n".join(lines) + "\n"


def _about(task: dict[str, Any]) -> str:
    data = task["data"]
    size = f"{task['queries']:,} queries or texts"
    parts = [size if task["kind"] != "finetune" else f"seeds {data['seeds']}"]
    parts.append(f"metric {task['metric']}")
    if "documents" in data:
        parts.append(f"{data['documents']:,} documents")
    if "distributions" in data:
        parts.append(f"from {counted(len(data['distributions']), 'package')}: {data['rule']}")
    if "majority" in data:
        parts.append(f"the commonest label alone {data['majority']:.3f}")
    if "chance" in data:
        parts.append(f"chance {data['chance']:.3f}")
    for model, point in data.get("chosen", {}).items():
        parts.append(f"best of the grid for {model}: {_words(point)}")
    if data.get("folder"):
        parts.append(f"from {data['folder']}")
    return "; ".join(parts) + "."


def _table(task: dict[str, Any]) -> list[str]:
    metrics = list(next(iter(task["systems"].values()))["scores"])[:4]
    head = ["system", *metrics, "95 %", "difference", "p"]
    rows = []
    for name, entry in task["systems"].items():
        low, high = entry["interval_95"]
        row = [name, *(f"{entry['scores'][metric]:.3f}" for metric in metrics)]
        row.append(f"{low:.3f} to {high:.3f}")
        difference = entry.get("difference")
        row += [_difference(difference), _p(difference["p_value"])] if difference else ["", ""]
        rows.append(row)
    bars = ["---", *("--:" for _ in head[1:])]
    return ["| " + " | ".join(row) + " |" for row in (head, bars, *rows)]


def _difference(d: dict[str, Any]) -> str:
    cluster = d["clustered_error"]
    more = f" ({cluster:.3f})" if cluster is not None else ""
    return f"{d['mean']:+.3f} ± {d['error']:.3f}{more} from {d['from']}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())
