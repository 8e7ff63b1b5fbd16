"""`restomod plan --html`: the plan as one self-contained page, with the schedules as charts.

In: a plan. Out: an HTML file that refers to no other file or address. Style and the charts' cursor
are those of `report.html`, the charts `charts.py`'s.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from restomod.errors import UserError
from restomod.tools import pages
from restomod.tools.charts import Line, Plot, svg, x_axis
from restomod.tools.plan import Plan
from restomod.tools.plan_parts import WARNING, Section
from restomod.tools.report_figures import table
from restomod.tools.schedule_plots import Schedule, Schedules, schedules

SAMPLES = 400


def write_page(plan: Plan, path: Path) -> None:
    """Write the page; raises UserError where that cannot be done."""
    try:
        pages.write_page(path, page(plan))
    except OSError as error:
        raise UserError(f"--html {path}: cannot be written: {error.strerror or error}") from error


def page(plan: Plan) -> str:
    """Return the page."""
    script, source = pages.script()
    name = escape(plan.recipe.run_name)
    warnings = [escape(w) for section in plan.sections for w in section.warnings]
    head, *sections = plan.sections
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src '{source}'; base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name}: plan</title>
<style>{pages.style()}</style>
</head>
<body>
<header>
  <p class="eyebrow">restomod plan</p>
  <h1>{name}</h1>
  <p class="summary">{escape(head.lines[0])}</p>
  <ul class="notices">{"".join(f"<li>{warning}</li>" for warning in warnings)}</ul>
</header>
<main>
<section><h2>Schedules</h2><div class="charts">{_charts(plan)}</div></section>
{_section(head)}
{"".join(_section(section) for section in sections)}
</main>
<script>{script}</script>
</body>
</html>
"""


def _section(section: Section) -> str:
    lines = [line for line in section.lines if not line.startswith(WARNING)]
    body = "".join(f"<p>{escape(line)}</p>" for line in lines)
    if section.table:
        rows = [[escape(cell) for cell in row] for row in section.table.rows]
        body += table(section.table.head, rows, section.title, "wide")
    body += "".join(f'<p class="note">{escape(note)}</p>' for note in section.notes)
    return f"<section><h2>{escape(section.title)}</h2>{body}</section>"


def _charts(plan: Plan) -> str:
    found = schedules(plan.timeline, plan.recipe.optimizer, SAMPLES)
    return "".join(_chart(schedule, found, plan, n) for n, schedule in enumerate(found.each))


def _chart(schedule: Schedule, found: Schedules, plan: Plan, number: int) -> str:
    """Draw one schedule over the run's slots."""
    percent = schedule.form.endswith("%}")
    unit = "%" if percent else ""
    values = [100 * value if percent else value for value in schedule.values]
    timeline = plan.timeline
    x = x_axis("tokens", found.slots[0], timeline.spans[-1].slots_before(timeline.end_step))
    first, last = (schedule.form.format(schedule.values[n]) for n in (0, -1))
    low, high = (schedule.form.format(end(schedule.values)) for end in (min, max))
    plot = Plot(
        name=f"schedule-{number}",
        title=f"{schedule.title} against {x.label}",
        description=f"From {first} to {last}, between {low} and {high}.",
        unit=unit,
        lines=[Line(schedule.title, "train", [list(zip(found.slots, values, strict=True))])],
        x=x,
        phases=[(span.phase.name, span.first_slot) for span in timeline.spans]
        if len(timeline.spans) > 1
        else (),
        name_phases=True,
    )
    title = escape(schedule.title)
    return (
        f'<figure class="chart" data-unit="{unit}"><figcaption><h3>{title}</h3>'
        f'<ul class="legend"><li><b data-value="{title}">{last}</b></li></ul>'
        f'<span class="at" data-at>latest</span></figcaption>'
        f'<div class="frame by-tokens">{svg(plot)}</div></figure>'
    )
