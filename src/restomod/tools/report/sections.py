"""Write the report's sections other than its curves.

In: a run's record. Out: HTML strings, every string from a file escaped; empty ones for sections
with nothing to say. `run.py` and `compare.py` call this.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from restomod.tools.pages.charts import si
from restomod.tools.pages.markup import NONE, bar, bytes_text, percent, plain, signed, table, times
from restomod.tools.record.metrics_log import RunLog, number, numbers
from restomod.tools.record.run_record import RunRecord
from restomod.units import duration

SHOWN_EVENTS = 40
LONGEST_DETAILS = 400


def summary(run: RunRecord) -> str:
    """Say in a line how far the run is."""
    log = run.log
    if not log.train_lines:
        return "Nothing trained yet."
    phase = f", in phase {escape(log.phases[-1].name)}" if len(run.asked) > 1 else ""
    done = ""
    if 0 < run.planned <= log.tokens:  # whole batches may be a few slots more
        done = ", all that were planned,"
    elif run.planned:
        done = f" of {si(run.planned)} planned ({percent(log.tokens / run.planned)})"
    return f"{si(log.tokens)} token slots{done} in {duration(log.time_s)}{phase}."


def progress(run: RunRecord) -> str:
    """Draw a bar of the planned phases, filled as far as the run has come."""
    log, total = run.log, run.planned
    if not total:
        return ""
    before = 0.0
    bars, names = [], []
    for phase in run.asked:
        slots = phase.slots or 0.0
        filled = min(1.0, max(0.0, (log.tokens - before) / slots)) if slots else 0.0
        before += slots
        done = f"{si(filled * slots)} of " if filled < 1 else ""
        bars.append(
            f'<span class="bar" style="flex-grow:{1000 * slots / total:.1f}">'
            f'<i style="width:{100 * filled:.2f}%"></i></span>'
        )
        names.append(f"<li>{escape(phase.name)} <b>{done}{si(slots)}</b></li>")
    return (
        f'<div class="progress"><div aria-hidden="true">{"".join(bars)}</div>'
        f'<ul aria-label="Slots of each phase">{"".join(names)}</ul></div>'
    )


def status(log: RunLog) -> list[tuple[str, str, str]]:
    """Return the run's numbers, each with what it means."""
    real, masked, loss = log.real_tokens, log.masked_tokens, log.final_loss
    best, best_step = log.best_eval or (None, None)
    speed = log.mean_tokens_per_s
    repeated = f", {log.repeated_lines:,} repeated by resumes" if log.repeated_lines else ""
    return [
        ("Training loss", plain(loss, ".3f"), f"mean of the last {len(log.final_losses)} logged"),
        (
            "Best evaluation loss",
            plain(best, ".3f"),
            "none yet" if best_step is None else f"all domains, step {best_step:,.0f}",
        ),
        ("Steps", f"{log.step:,.0f}", f"{log.train_lines:,} logged{repeated}"),
        ("Wall time", duration(log.time_s), times(len(log.resumes), "resume")),
        ("Token slots", si(log.tokens), f"{log.tokens:,.0f}"),
        ("Real tokens", NONE if real is None else si(real), plain(real, ",.0f")),
        (
            "Masked tokens",
            NONE if masked is None else si(masked),
            f"{percent(masked / real)} of real" if masked is not None and real else "",
        ),
        ("Packing", percent(log.mean_packing, 2), "real tokens per slot"),
        ("Throughput", plain(speed, ",.0f"), "slots per second of training"),
        ("MFU", percent(log.mfu.mean), "of the device's peak FLOP/s"),
        ("Data wait", percent(log.data_wait.mean, 2), "of the training time"),
        ("Checkpoints", f"{log.event_counts['checkpoint']:,}", _checkpoint_note(log)),
    ]


def _checkpoint_note(log: RunLog) -> str:
    parts = []
    if log.checkpoint_s.mean is not None:
        parts.append(f"{duration(log.checkpoint_s.mean)} each")
    if log.checkpoint_bytes is not None:
        parts.append(f"{bytes_text(log.checkpoint_bytes)} the last")
    return ", ".join(parts)


def evaluated_losses(evaluation: dict[str, Any]) -> dict[str, float]:
    """Return the loss of each domain of an evaluation, as far as it can be read."""
    domains = evaluation.get("domains")
    scores = {str(d): numbers(s) for d, s in domains.items()} if isinstance(domains, dict) else {}
    return {domain: of["loss"] for domain, of in scores.items() if "loss" in of}


def evaluation_table(evaluation: dict[str, Any]) -> str:
    domains = evaluation.get("domains")
    if not isinstance(domains, dict) or not domains:
        return ""
    rows = []
    for name in sorted(map(str, domains), key=lambda name: (name == "all", name)):
        scores = numbers(domains.get(name))
        loss, unigram = scores.get("loss"), scores.get("unigram_loss")
        gain = loss - unigram if loss is not None and unigram is not None else None
        accuracy = scores.get("accuracy")
        rows.append(
            [
                f"<b>{escape(name)}</b>" if name == "all" else escape(name),
                plain(loss, ".3f"),
                plain(unigram, ".3f"),
                signed(gain, 3),
                ("" if accuracy is None else bar(accuracy)) + percent(accuracy),
                percent(scores.get("unigram_accuracy")),
                plain(scores.get("masked_tokens"), ",.0f"),
            ]
        )
    head = ["domain", "loss", "unigram loss", "difference", "accuracy"]
    head += ["unigram accuracy", "masked tokens"]
    where = "".join(
        f"<dt>{label}</dt><dd><code>{escape(str(evaluation[key]))}</code></dd>"
        for key, label in (("checkpoint", "Checkpoint"), ("exported", "Exported"))
        if evaluation.get(key)
    )
    return (
        '<p class="note">Loss in nats per predicted token, beside a model that knows only how '
        "frequent each token is.</p>"
        + table(head, rows, "Final evaluation", "wide evaluation")
        + (f'<dl class="where">{where}</dl>' if where else "")
    )


def events(log: RunLog) -> str:
    """List what happened besides steps, evaluations and checkpoints, which the curves show."""
    counts = ", ".join(f"{count:,} {escape(kind)}" for kind, count in log.event_counts.items())
    if not counts:
        return ""
    rows = [event_cells(event) for event in list(log.events)[-SHOWN_EVENTS:]]
    shown = table(["wall time", "step", "event", "details"], rows, "Events", "wide events")
    return f'<p class="note">Lines in the log: {counts}.</p>{shown if rows else ""}'


def event_cells(event: dict[str, Any], longest: int = LONGEST_DETAILS) -> list[str]:
    """Return an event's wall time, step, name, and all else that its line says, cut short."""
    time_s, step = number(event.get("time_s")), number(event.get("step"))
    rest = {k: v for k, v in event.items() if k not in ("event", "time_s", "step")}
    details = _words(rest)
    return [
        NONE if time_s is None else duration(time_s),
        plain(step),
        escape(str(event.get("event", ""))),
        escape(details if len(details) <= longest else f"{details[: longest - 1]}…"),
    ]


def _words(values: dict[str, Any]) -> str:
    """Write a line's values without brackets; what is empty is left out."""
    said = []
    for name, value in values.items():
        if isinstance(value, dict) and not any(isinstance(v, dict) for v in value.values()):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if value not in ("", None, [], {}):
            said.append(f"{name} {value if isinstance(value, str) else json.dumps(value)}")
    return "; ".join(said)


def recipe(text: str) -> str:
    if not text:
        return ""
    return (
        "<details><summary>config.yaml, resolved</summary>"
        f'<pre class="code" tabindex="0" role="region" aria-label="Recipe">{escape(text)}</pre>'
        "</details>"
    )
