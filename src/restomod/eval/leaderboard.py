"""leaderboard.html: how tasks improve with tokens, over the checkpoints of a run.

In: results.json's content, of models that know how long they were trained. Out: one page that opens
offline: a chart a task, and a table of all checkpoints and baselines. `run.py` calls this.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from restomod.tools.pages.charts import Line, Plot, si, svg, x_axis
from restomod.tools.pages.frame import Page, Part, write_page
from restomod.tools.pages.markup import table

COLOURS = 8
RANDOM = "random init"


def write_leaderboard(results: dict[str, Any], path: Path) -> Path:
    """Write the page and return its path."""
    models = sorted(
        (m for m in results["models"] if m["slots"] is not None), key=lambda m: m["slots"]
    )
    tasks = {name: task for name, task in results["tasks"].items() if "skipped" not in task}
    figures = "".join(
        _figure(n, name, task, models) for n, (name, task) in enumerate(tasks.items())
    )
    page = Page(
        "eval",
        f"Suite {results['suite']}",
        [escape(text) for text in (results["description"], results["note"], results["command"])],
        [
            Part("tasks", "Tasks over tokens", f'<div class="charts">{figures}</div>'),
            Part("scores", "All scores", _scores(results, models, tasks)),
        ],
    )
    return write_page(path, page)


def curves(
    task: dict[str, Any], models: list[dict[str, Any]]
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float]]:
    """Return the points (slots, score) of the checkpoints by treatment, from random initialisation
    at 0 on where it was scored, and the scores of the other systems."""
    metric = task["metric"]
    moving: dict[str, list[tuple[float, float]]] = {}
    constant: dict[str, float] = {}
    slots = {model["name"]: model["slots"] for model in models}
    slots[RANDOM] = 0
    for name, entry in task["systems"].items():
        model, comma, treatment = name.partition(", ")
        score = entry["scores"][metric]
        if model in slots:
            label = treatment if comma else "checkpoints"
            moving.setdefault(label, []).append((slots[model], score))
        else:
            constant[name] = score
    return {label: sorted(points) for label, points in moving.items()}, constant


def _figure(number: int, name: str, task: dict[str, Any], models: list[dict[str, Any]]) -> str:
    moving, constant = curves(task, models)
    last = max(model["slots"] for model in models)
    lines, legend = [], []
    for n, (label, points) in enumerate(moving.items()):
        style = f"c{n % COLOURS + 1}"
        lines.append(Line(label, style, [points], dots=True))
        legend.append((style, label, points[-1][1]))
    for n, (label, score) in enumerate(constant.items(), len(moving)):
        style = f"c{n % COLOURS + 1}"
        lines.append(Line(label, f"{style} asked", [[(0.0, score), (float(last), score)]]))
        legend.append((style, label, score))
    words = "; ".join(f"{label} {score:.3f}" for _, label, score in legend)
    plot = Plot(
        f"task-{number}",
        f"{name} against token slots",
        f"{words}. At 0 is random initialisation. Dashed lines are baselines.",
        task["metric"],
        lines,
        x_axis("tokens", 0, last),
    )
    items = "".join(
        f'<li><span class="key {style}"></span>{escape(label)} <b>{score:.3f}</b></li>'
        for style, label, score in legend
    )
    return (
        f'<figure class="chart"><figcaption><h3>{escape(name)}</h3>'
        f'<ul class="legend">{items}</ul></figcaption>'
        f'<div class="frame">{svg(plot)}</div></figure>'
    )


def _scores(
    results: dict[str, Any], models: list[dict[str, Any]], tasks: dict[str, dict[str, Any]]
) -> str:
    slots = {model["name"]: si(model["slots"]) for model in models}
    names = dict.fromkeys(name for task in tasks.values() for name in task["systems"])
    rows = []
    for name in names:
        cells = [escape(name), slots.get(name.partition(", ")[0], "")]
        for task in tasks.values():
            entry = task["systems"].get(name)
            text = f"{entry['scores'][task['metric']]:.3f}" if entry else ""
            cells.append(f"{text} ± {entry['standard_error']:.3f}" if entry else "")
        rows.append(cells)
    head = ["system", "slots", *(f"{name}, {task['metric']}" for name, task in tasks.items())]
    return table(head, rows, "All scores", "wide")
