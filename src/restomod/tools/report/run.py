"""Write a run's report: one self-contained page that opens from a file, offline, years later.

In: a run folder. Out: report.html in it, or another file. It may be written at any time of a run,
and again later. Training calls this at its end, `restomod eval` when it has evaluated, and
`restomod report` through `report.py`.
"""

from __future__ import annotations

from pathlib import Path

from restomod.tools.pages.frame import Page, Part, write_page
from restomod.tools.pages.markup import remarks
from restomod.tools.record.run_record import RunRecord, read_run
from restomod.tools.report import sections
from restomod.tools.report.mixture import mixture_table
from restomod.tools.report.run_figures import figures, key
from restomod.tools.report.samples import fill_mask, samples

REPORT = "report.html"


def write_report(run_folder: Path, out: Path | None = None) -> Path:
    """Write a run's page, `report.html` in its folder by default, and return its path.

    Raises UserError when the folder holds no metrics.jsonl. What cannot be read is left out, and
    the page says so.
    """
    run = read_run(run_folder)
    return write_page(out or run_folder / REPORT, page(run))


def page(run: RunRecord) -> Page:
    """Return the page of a run."""
    log = run.log
    curves = mixture = ""
    if log.train_lines:
        charts, mixture, left_out = figures(run)
        curves = f'{key(log)}<div class="charts">{charts}</div>{remarks(left_out)}'
    return Page(
        kind="run report",
        name=run.name,
        summary=[sections.summary(run)],
        parts=[
            Part("curves", "Curves", curves),
            Part("mixture-section", "Mixture", mixture + mixture_table(run)),
            Part("evaluation", "Final evaluation", sections.evaluation_table(run.evaluation)),
            Part("fill-mask", "Fill the mask", fill_mask(run.evaluation)),
            Part("samples", "Samples through training", samples(log)),
            Part("events", "Events", sections.events(log)),
            Part("recipe", "Recipe", sections.recipe(run.config_text)),
        ],
        notices=run.notices,
        status=sections.status(log) if log.train_lines else (),
        progress=sections.progress(run),
        footer=f"From metrics.jsonl as of {run.updated:%Y-%m-%d %H:%M} UTC.",
        axis=bool(curves),
    )
