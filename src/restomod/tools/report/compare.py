"""Write the page that lays several runs side by side.

In: run folders; what is broken or missing in one of them is said on the page. Out: one HTML file.
`report.py` calls this.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from restomod.errors import UserError
from restomod.tools.pages.charts import si
from restomod.tools.pages.frame import Page, Part, write_page
from restomod.tools.pages.markup import key, percent, plain, remarks, table
from restomod.tools.record.run_record import METRICS, RunRecord, read_run
from restomod.tools.report import sections
from restomod.tools.report.compare_figures import Shown, figures, style_of
from restomod.tools.report.differences import differences
from restomod.tools.report.mixture import compared_mixtures
from restomod.tools.report.samples import compared
from restomod.units import duration

EVENTS_OF_A_RUN = 12
LONGEST_DETAILS = 200
STATES = {"end": "complete", "stop": "stopped", "nonfinite": "not finite", "failure": "failed"}
IGNORED = ("run_name",)


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of several runs and return its path; raises UserError if none is a run."""
    notices: list[str] = []
    runs = []
    for folder in _once(folders, notices):
        if (folder / METRICS).is_file():
            runs.append(read_run(folder))
        else:
            notices.append(f"{folder}: left out, for it is no run folder: it holds no {METRICS}.")
    if not runs:
        raise UserError(f"no run folder among {', '.join(map(str, folders))}: none has a {METRICS}")
    return write_page(out, page(runs, notices))


def _marks(shown: Sequence[Shown]) -> str:
    if not any(run.log.resumes for run in shown):
        return ""
    return '<p class="note">Vertical dashes: a resume, in its run\'s colour.</p>'


def _once(folders: Sequence[Path], notices: list[str]) -> list[Path]:
    """Return each folder once, however it was written."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if folder.resolve() in found:
            notices.append(f"{folder}: given more than once, and shown once.")
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def page(runs: Sequence[RunRecord], notices: Sequence[str] = ()) -> Page:
    """Return the page of several runs."""
    names = _names(runs)
    said = [
        f"{name}: {text}" for name, run in zip(names, runs, strict=True) for text in run.notices
    ]
    shown = [Shown(n, style_of(k), runs[k].log) for k, n in enumerate(names)]
    titles = [f"{key(run.style)}{escape(run.name)}" for run in shown]
    trained = [run for run in shown if run.log.train_lines]
    curves = ""
    if trained:
        charts, left_out = figures(trained)
        curves = f'{_marks(trained)}<div class="charts">{charts}</div>{remarks(left_out)}'
    unequal = differences(dict(zip(names, (r.config for r in runs), strict=True)), IGNORED)
    return Page(
        kind="report of several runs",
        name=_title(names),
        summary=[f"{len(runs)} run{'s' if len(runs) > 1 else ''} side by side."],
        parts=[
            Part("runs", "Runs", _runs(runs, titles)),
            Part("curves", "Curves", curves),
            Part("differences", "What differs between the recipes", unequal),
            Part("mixture", "Mixture", compared_mixtures(list(zip(titles, runs, strict=True)))),
            Part("evaluation", "Final evaluation", _evaluations(runs, titles)),
            Part("samples", "Samples", compared({run.name: (run.style, run.log) for run in shown})),
            Part("events", "Events", _events(shown)),
        ],
        notices=[*notices, *said],
        footer=f"From {METRICS} of each run, as of {max(r.updated for r in runs):%Y-%m-%d %H:%M}"
        " UTC.",
        axis=bool(curves),
    )


def _title(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and others"


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """Return the runs' names; those of the same name are told apart by their folders."""
    count = Counter(run.name for run in runs)
    return [r.name if count[r.name] == 1 else f"{r.name} ({os.fspath(r.folder)})" for r in runs]


def _runs(runs: Sequence[RunRecord], titles: Sequence[str]) -> str:
    """Tabulate the runs, a row a run."""
    rows = []
    for run, title in zip(runs, titles, strict=True):
        log = run.log
        best, _ = log.best_eval or (None, None)
        done = min(1.0, log.tokens / run.planned) if run.planned else None
        rows.append(
            [
                title,
                STATES.get(log.newest, "unfinished"),
                plain(log.step),
                si(log.tokens),
                percent(done),
                duration(log.time_s),
                plain(log.final_loss, ".3f"),
                plain(best, ".3f"),
                plain(log.mean_tokens_per_s),
                percent(log.mfu.mean),
                percent(log.data_wait.mean, 2),
                percent(log.mean_packing, 2),
                plain(len(log.resumes)),
            ]
        )
    head = ["run", "state", "steps", "slots", "of planned", "wall time", "training loss"]
    head += ["best evaluation", "slots/s", "MFU", "data wait", "packing", "resumes"]
    note = (
        "Training loss: mean of the last 50 logged. Best evaluation: lowest loss over all domains. "
        "Slots/s, MFU and data wait: of the time spent in training steps."
    )
    return f'{table(head, rows, "Runs", "wide named states")}<p class="note">{note}</p>'


def _evaluations(runs: Sequence[RunRecord], titles: Sequence[str]) -> str:
    """Tabulate the held-out losses that `restomod eval` found, a row a run."""
    evaluated = zip(titles, (sections.evaluated_losses(r.evaluation) for r in runs), strict=True)
    losses = {title: found for title, found in evaluated if found}
    domains = sorted({d for of in losses.values() for d in of}, key=lambda d: (d == "all", d))
    rows = [[name, *(plain(of.get(d), ".3f") for d in domains)] for name, of in losses.items()]
    if not rows:
        return ""
    note = '<p class="note">Loss in nats per predicted token, by domain.</p>'
    return note + table(["run", *domains], rows, "Final evaluation", "named")


def _events(shown: Sequence[Shown]) -> str:
    """List the newest events of every run."""
    rows = [
        [f"{key(run.style)}{escape(run.name)}", *sections.event_cells(event, LONGEST_DETAILS)]
        for run in shown
        for event in list(run.log.events)[-EVENTS_OF_A_RUN:]
    ]
    if not rows:
        return ""
    note = f'<p class="note">The last {EVENTS_OF_A_RUN} of each run.</p>'
    head = ["run", "wall time", "step", "event", "details"]
    return note + table(head, rows, "Events", "wide events of-runs")
