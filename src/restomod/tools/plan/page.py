"""`restomod plan --html`: the plan as one self-contained page, with the schedules as charts.

In: a plan. Out: an HTML file that refers to no other file or address. `commands.py` calls this.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from restomod.tools.pages import frame as pages
from restomod.tools.pages.charts import Line, Plot, svg, x_axis
from restomod.tools.pages.markup import key, remarks, table
from restomod.tools.plan.parts import WARNING, Section
from restomod.tools.plan.plan import Plan
from restomod.tools.plan.schedules import Schedule, Schedules, schedules

SAMPLES = 400


def write_page(plan: Plan, path: Path) -> None:
    """Write the page; raises UserError where that cannot be done."""
    pages.write_page(path, page(plan))


def page(plan: Plan) -> pages.Page:
    """Return the page."""
    name, head = plan.recipe.run_name, plan.sections[0]
    parts = [pages.Part("schedules", "Schedules", _schedules(plan))]
    for n, section in enumerate(plan.sections):
        title = section.title.removeprefix(f"{name}: ")
        title = title[:1].upper() + title[1:]
        parts.append(pages.Part(f"part-{n}", title, _section(section), title.partition(":")[0]))
    return pages.Page(
        kind="plan",
        name=name,
        summary=[escape(head.lines[0])],
        parts=parts,
        notices=[warning for section in plan.sections for warning in section.warnings],
    )


def _section(section: Section) -> str:
    lines = [line for line in section.lines if not line.startswith(WARNING)]
    body = "".join(f"<p>{escape(line)}</p>" for line in lines)
    if section.table:
        rows = [[escape(cell) for cell in row] for row in section.table.rows]
        body += table(section.table.head, rows, section.title, "wide")
    return body + remarks(section.notes)


def _schedules(plan: Plan) -> str:
    """Draw what changes over the run, and say what does not."""
    found = schedules(plan.timeline, plan.recipe.optimizer, SAMPLES)
    changing = [each for each in found.each if min(each.values) < max(each.values)]
    charts = "".join(_chart(schedule, found, plan, n) for n, schedule in enumerate(changing))
    constant = [
        f"{_title(each)} {each.form.format(each.values[0])} throughout."
        for each in found.each
        if each not in changing
    ]
    return f'<div class="charts">{charts}</div>{remarks(constant)}'


def _title(schedule: Schedule) -> str:
    return schedule.title[:1].upper() + schedule.title[1:]


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
        title=f"{_title(schedule)} against {x.label}",
        description=f"From {first} to {last}, between {low} and {high}. Arrow keys move a cursor.",
        unit=unit,
        lines=[Line(_title(schedule), "train", [list(zip(found.slots, values, strict=True))])],
        x=x,
        phases=[(span.phase.name, span.first_slot) for span in timeline.spans]
        if len(timeline.spans) > 1
        else (),
        name_phases=True,
    )
    title = escape(_title(schedule))
    return (
        f'<figure class="chart" data-unit="{unit}"><figcaption><h3>{title}</h3>'
        f'<ul class="legend"><li>{key("train")}<b data-value="{title}">{last}</b></li></ul>'
        f'<span class="at" data-at>at the end</span></figcaption>'
        f'<div class="frame by-tokens">{svg(plot)}</div></figure>'
    )
