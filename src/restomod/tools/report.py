"""Write a run's report: one self-contained page that opens from a file, offline, years later.

In: a run folder with metrics.jsonl, and when present config.yaml (the resolved recipe) and
evaluation.json. Out: report.html beside them. It may be written at any time of a run, and again
later. The command `restomod report` calls this. The page's frame, style and script are in
report.html here; nothing in it refers to another file or address.
"""

import json
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import yaml

from restomod.errors import UserError
from restomod.tools import pages
from restomod.tools import report_sections as sections
from restomod.tools.metrics_log import RunLog, number, numbers, read_log
from restomod.tools.report_figures import AskedPhase, figures, key
from restomod.units import parse_slots


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Raises UserError when the folder holds no metrics.jsonl. What cannot be read is left out, and
    the page says so.
    """
    metrics = run_folder / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(
            f"{run_folder} is not a run folder: it holds no metrics.jsonl; "
            "give the folder of a run, such as runs/NAME"
        )
    log = read_log(metrics)
    notices = _log_notices(log)
    config_text, config = _config(run_folder / "config.yaml", notices)
    evaluation = _evaluation(run_folder / "evaluation.json", notices)
    updated = datetime.fromtimestamp(metrics.stat().st_mtime, UTC)
    name = config.get("run_name")
    name = name if isinstance(name, str) and name else run_folder.resolve().name
    asked = asked_phases(config, log)

    parts: list[tuple[str, str, str]] = []
    mixture = ""
    if log.train_lines:
        charts, mixture, missing = figures(log, asked)
        note = f'<p class="note">Nothing logged for: {", ".join(missing)}.</p>' if missing else ""
        curves = f'{key(log)}<div class="charts">{charts}</div>{note}'
        parts.append(("curves", "Curves", curves))
    parts += [
        ("mixture-section", "Mixture", mixture + sections.mixture_table(log, asked)),
        ("evaluation", "Final evaluation", sections.evaluation_table(evaluation)),
        ("fill-mask", "Fill the mask", sections.fill_mask(evaluation)),
        ("events", "Events", sections.events(log)),
        ("recipe", "Recipe", sections.recipe(config_text)),
    ]
    parts = [part for part in parts if part[2]]

    page = Template(pages.REPORT.read_text(encoding="utf-8")).substitute(
        script_hash=pages.script()[1],
        name=escape(name),
        summary=sections.summary(log, asked),
        updated=f"{updated:%Y-%m-%d %H:%M} UTC",
        links="".join(f'<a href="#{slug}">{title}</a>' for slug, title, _ in parts),
        notices="".join(f"<li>{escape(notice)}</li>" for notice in notices),
        progress=sections.progress(log, asked),
        status=sections.status(log) if log.train_lines else "",
        sections="".join(
            f'<section id="{slug}"><h2>{title}</h2>{body}</section>' for slug, title, body in parts
        ),
    )
    report = run_folder / "report.html"
    pages.write_page(report, page)
    return report


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


def _config(path: Path, notices: list[str]) -> tuple[str, dict[str, Any]]:
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
