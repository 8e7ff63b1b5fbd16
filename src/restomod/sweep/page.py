"""Write sweep.html: a sweep's trials in parallel coordinates, in a table, their curves, and how
their recipes differ; one page that opens from a file, offline.

In: the sweep file, its trials, their run folders. Out: the page. The sweep writes it, and `restomod
report` anew at any time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from html import escape
from pathlib import Path

from restomod.sweep.file import COPY, OURS, SweepFile, load_sweep
from restomod.sweep.parallel import highlights, parallel_coordinates
from restomod.sweep.study import DONE, Trial, recorded_trials
from restomod.sweep.table import best, cells, head, ranked, show
from restomod.tools.pages.frame import Page, Part, write_page
from restomod.tools.pages.markup import key, table
from restomod.tools.record.metrics_log import RunLog, read_log
from restomod.tools.record.run_record import METRICS, read_config
from restomod.tools.report.compare_figures import Shown, figures, style_of
from restomod.tools.report.differences import differences

PAGE = "sweep.html"
NAMED = 8
"""Trials whose curves have colours and names, the best ones."""
STYLE = """
:root { --faded: #cfd3d8; }
@media (prefers-color-scheme: dark) { :root { --faded: #3a3f47; } }
.summary { overflow-wrap: anywhere; }
.parallel .frame { padding: 2.6rem 3.4rem 1rem 4.2rem; width: max-content; min-width: 100%; }
.plot line.axis { stroke: var(--soft); pointer-events: none; }
.parallel text { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.plot text.axis { fill: var(--ink); font-weight: 600; pointer-events: auto; }
.rest { --stroke: var(--faded); }
.trial path { stroke: var(--stroke); stroke-width: var(--width, 1.8); }
.trial.stopped path { stroke-dasharray: 5 4; }
.trial .hit { stroke: transparent; stroke-width: 14; pointer-events: stroke; }
.trial:hover { --stroke: var(--alarm) !important; --width: 4; }
.trials td:nth-child(2), .trials th:nth-child(2) { text-align: left; }
.trials tr:hover { background: var(--tint); }
.trials td:last-child { white-space: pre-wrap; text-align: left; width: 30%; }
.trials td:last-child:not(:empty) { min-width: 16rem; }
"""


def rewrite_page(folder: Path, out: Path | None) -> Path:
    """Write the page of a sweep that may be running; raises UserError if it cannot be read."""
    sweep = load_sweep(folder / COPY)
    return write_sweep_page(sweep, recorded_trials(sweep, folder), folder, out)


def write_sweep_page(
    sweep: SweepFile, trials: list[Trial], folder: Path, out: Path | None = None
) -> Path:
    """Write the page, into the sweep's folder by default, and return its path."""
    shown = _shown(sweep, trials, folder)
    keys = {int(run.name): key(run.style) for run in shown if run.listed}
    charts = figures(shown)[0] if shown else ""
    note = f"The best {NAMED} have colours and names. " if len(shown) > NAMED else ""
    curves = f'<p class="note">{note}A row of the table lights up its trial\'s curves.</p>'
    configs = {
        f"{trial.number:03d}": read_config(folder / sweep.run_name(trial.number), [])[1]
        for trial in trials
    }
    page = Page(
        kind="sweep",
        name=sweep.name,
        summary=[_summary(sweep, trials)],
        parts=[
            Part("parallel", "Parallel coordinates", _parallel(sweep, trials)),
            Part("trials", "Trials", _trials(sweep, trials, keys)),
            Part(
                "curves", "Curves", f'{curves}<div class="charts">{charts}</div>' if charts else ""
            ),
            Part("differences", "What differs between the recipes", differences(configs, OURS)),
        ],
        axis=bool(charts),
        style=STYLE + highlights(trials),
    )
    return write_page(out or folder / PAGE, page)


def _shown(sweep: SweepFile, trials: list[Trial], folder: Path) -> list[Shown]:
    """Return the trials that have trained, the best first."""
    logs = []
    for trial in ranked(sweep, trials):
        path = folder / sweep.run_name(trial.number) / METRICS
        try:
            stat = path.stat()
            log = _log(path, stat.st_mtime_ns, stat.st_size)
        except OSError:
            continue
        if log.train_lines:
            logs.append((trial.number, log))
    return [
        Shown(
            f"{number:03d}",
            f"{style_of(place) if place < NAMED else 'rest'} trial-{number}",
            log,
            listed=place < NAMED,
        )
        for place, (number, log) in enumerate(logs)
    ]


@functools.lru_cache(maxsize=512)
def _log(path: Path, written_ns: int, size: int) -> RunLog:
    """Read a trial's log: once for all pages that a sweep writes, unless it has grown."""
    return read_log(path)


def _parallel(sweep: SweepFile, trials: list[Trial]) -> str:
    plot = parallel_coordinates(sweep, trials)
    note = "The better, the stronger its colour; dashed lines were stopped early."
    if not plot:
        return ""
    return (
        f'<div class="chart wide parallel"><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Parallel coordinates"><div class="frame">{plot}</div></div>'
        f'<p class="note">{note}</p></div>'
    )


def _summary(sweep: SweepFile, trials: Sequence[Trial]) -> str:
    done = sum(trial.state == DONE for trial in trials)
    first = best(sweep, list(trials))
    text = f"{sweep.method} search, {done} of {len(trials)} trials complete"
    if first is not None and first.value is not None:
        words = ", ".join(f"{key} {show(value)}" for key, value in first.values.items())
        text += f"; best: {first.number:03d}, {sweep.metric.name} {first.value:.4f} with {words}"
    about = f"{sweep.description.rstrip('.')}. " if sweep.description else ""
    return escape(f"{about}{text}.")


def _trials(sweep: SweepFile, trials: list[Trial], keys: dict[int, str]) -> str:
    rows = ranked(sweep, trials)
    return table(
        head(sweep),
        [_row(keys.get(trial.number, ""), cells(sweep, trial)) for trial in rows],
        "Trials",
        "wide trials named",
        [f"row-{trial.number}" for trial in rows],
    )


def _row(key: str, texts: list[str]) -> list[str]:
    first, *others = map(escape, texts)
    return [key + first, *others]
