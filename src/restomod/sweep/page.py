"""Write sweep.html: a sweep's trials in parallel coordinates, in a table, and how their recipes
differ; one page that opens from a file, offline.

In: the sweep file, its trials, their run folders. Out: the page. The style is the run report's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from restomod.recipe import flatten
from restomod.sweep.file import OURS, SweepFile
from restomod.sweep.parallel import highlights, parallel_coordinates
from restomod.sweep.study import DONE, Trial
from restomod.sweep.table import best, cells, head, ranked, show
from restomod.tools import pages
from restomod.tools.report_figures import table

PAGE = "sweep.html"
STYLE = """
:root { --faded: #cfd3d8; }
@media (prefers-color-scheme: dark) { :root { --faded: #3a3f47; } }
.summary { overflow-wrap: anywhere; }
.frame { padding: 2.6rem 3.4rem 1rem 4.2rem; width: max-content; min-width: 100%; }
.plot .axis { stroke: var(--soft); pointer-events: none; }
.plot text, .plot text.axis { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.plot text.axis { fill: var(--ink); font-weight: 600; pointer-events: auto; }
.trial path { stroke: var(--stroke); stroke-width: var(--width, 1.8); }
.trial.stopped path { stroke-dasharray: 5 4; }
.trial .hit { stroke: transparent; stroke-width: 14; pointer-events: stroke; }
.trial:hover { --stroke: var(--alarm) !important; --width: 4; }
.trials td:nth-child(2), .trials th:nth-child(2) { text-align: left; }
.trials tr:hover { background: var(--tint); }
.trials td:last-child { white-space: pre-wrap; text-align: left; width: 30%; }
"""
HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name}: sweep</title>
<style>{style}</style>
</head>
<body>
<header>
  <p class="eyebrow">restomod sweep</p>
  <h1>{name}</h1>
  <p class="summary">{summary}</p>
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def write_page(sweep: SweepFile, trials: list[Trial], folder: Path) -> Path:
    """Write the page into the sweep's folder and return its path."""
    plot = parallel_coordinates(sweep, trials)
    note = "The better, the stronger its colour; dashed lines were stopped early."
    figure = f'<div class="scroll"><div class="frame">{plot}</div></div><p class="note">{note}</p>'
    differing = differences(sweep, trials, folder)
    parts = [
        ("Parallel coordinates", f'<div class="chart wide">{figure}</div>' if plot else ""),
        ("Trials", _trials(sweep, trials)),
        ("What differs between the recipes", differing),
    ]
    page = HTML.format(
        name=escape(sweep.name),
        style=pages.style() + STYLE + highlights(trials),
        summary=_summary(sweep, trials),
        sections="".join(f"<section><h2>{t}</h2>{body}</section>" for t, body in parts if body),
    )
    pages.write_page(folder / PAGE, page)
    return folder / PAGE


def _summary(sweep: SweepFile, trials: Sequence[Trial]) -> str:
    done = sum(trial.state == DONE for trial in trials)
    first = best(sweep, list(trials))
    text = f"{sweep.method} search, {done} of {len(trials)} trials complete"
    if first is not None and first.value is not None:
        words = ", ".join(f"{key} {show(value)}" for key, value in first.values.items())
        text += f"; best: {first.number:03d}, {sweep.metric.name} {first.value:.4f} with {words}"
    about = f"{sweep.description.rstrip('.')}. " if sweep.description else ""
    return escape(f"{about}{text}.")


def _trials(sweep: SweepFile, trials: list[Trial]) -> str:
    rows = ranked(sweep, trials)
    text = table(
        head(sweep),
        [[escape(cell) for cell in cells(sweep, trial)] for trial in rows],
        "Trials",
        "wide trials",
    )
    numbers = iter(rows)
    before, tag, body = text.partition("<tbody>")
    return before + tag + re.sub("<tr>", lambda _: f'<tr id="row-{next(numbers).number}">', body)


def differences(sweep: SweepFile, trials: Sequence[Trial], folder: Path) -> str:
    """Compare the resolved recipes of the runs: one row for each key in which any two differ."""
    recipes = {}
    for trial in trials:
        config = folder / sweep.run_name(trial.number) / "config.yaml"
        try:
            recipes[trial.number] = flatten(yaml.safe_load(config.read_text()))
        except (OSError, yaml.YAMLError):
            continue
    keys = dict.fromkeys(key for recipe in recipes.values() for key in recipe)

    def shown(value: Any) -> str:
        return "" if value is None else escape(show(value))

    rows = [
        [escape(key), *(shown(recipe.get(key)) for recipe in recipes.values())]
        for key in keys
        if key not in OURS and len({str(recipe.get(key)) for recipe in recipes.values()}) > 1
    ]
    if not rows:
        return ""
    return table(["key", *(f"{n:03d}" for n in recipes)], rows, "What differs between the recipes")
