"""Write the report's sections other than its curves.

In: the log, the recipe's phases, evaluation.json as read. Out: HTML strings, every string from a
file escaped; empty ones for sections with nothing to say. `tools/report.py` calls this.
"""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from restomod.tools.charts import duration, si
from restomod.tools.metrics_log import RunLog, number, numbers
from restomod.tools.report_figures import AskedPhase, colours, table

SHOWN_EVENTS = 40
SHOWN_EXAMPLES = 60
NONE = '<span class="none">&ndash;</span>'


def summary(log: RunLog, asked: Sequence[AskedPhase]) -> str:
    if not log.train_lines:
        return "Nothing trained yet."
    planned = sum(phase.slots or 0 for phase in asked)
    phase = f", in phase {escape(log.phases[-1].name)}" if len(asked) > 1 else ""
    done = ""
    if planned:
        done = f" of {si(planned)} planned ({_percent(min(1.0, log.tokens / planned))})"
    return f"{si(log.tokens)} token slots{done} in {duration(log.time_s)}{phase}."


def _percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f}%"


def progress(log: RunLog, asked: Sequence[AskedPhase]) -> str:
    """Draw a bar of the planned phases, filled as far as the run has come."""
    total = sum(phase.slots or 0 for phase in asked)
    if not total:
        return ""
    before = 0.0
    bars, names = [], []
    for phase in asked:
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


def status(log: RunLog) -> str:
    """Write the run's numbers, each with what it means."""
    real, masked = log.real_tokens, log.masked_tokens
    loss = sum(log.final_losses) / len(log.final_losses) if log.final_losses else None
    best, best_step = log.best_eval or (None, None)
    speed = log.mean_tokens_per_s
    repeated = f", {log.repeated_lines:,} repeated by resumes" if log.repeated_lines else ""
    packing = real / log.tokens if real and log.tokens else log.packing.mean
    cells = [
        ("Training loss", _plain(loss, ".3f"), f"mean of the last {len(log.final_losses)} logged"),
        (
            "Best evaluation loss",
            _plain(best, ".3f"),
            "none yet" if best_step is None else f"all domains, step {best_step:,.0f}",
        ),
        ("Steps", f"{log.step:,.0f}", f"{log.train_lines:,} logged{repeated}"),
        ("Wall time", duration(log.time_s), _times(len(log.resumes), "resume")),
        ("Token slots", si(log.tokens), f"{log.tokens:,.0f}"),
        ("Real tokens", NONE if real is None else si(real), _plain(real, ",.0f")),
        (
            "Masked tokens",
            NONE if masked is None else si(masked),
            f"{_percent(masked / real)} of real" if masked is not None and real else "",
        ),
        ("Packing", _percent(packing, 2), "real tokens per slot"),
        ("Throughput", _plain(speed, ",.0f"), "slots per second of training"),
        ("MFU", _percent(log.mfu.mean), "of the device's peak FLOP/s"),
        ("Data wait", _percent(log.data_wait.mean, 2), "of the training time"),
        ("Checkpoints", f"{log.event_counts['checkpoint']:,}", _checkpoint_note(log)),
    ]
    return "".join(
        f"<div><dt>{label}</dt><dd><b>{value}</b><small>{note}</small></dd></div>"
        for label, value, note in cells
    )


def _plain(value: float | None, spec: str) -> str:
    return NONE if value is None else format(value, spec)


def _signed(value: float | None, digits: int) -> str:
    return _plain(value, f"+.{digits}f").replace("-", "&minus;") if value is not None else NONE


def _times(count: int, what: str) -> str:
    return f"no {what}" if count == 0 else f"{count:,} {what}{'s' if count > 1 else ''}"


def _checkpoint_note(log: RunLog) -> str:
    parts = []
    if log.checkpoint_s.mean is not None:
        parts.append(f"{duration(log.checkpoint_s.mean)} each")
    if log.checkpoint_bytes is not None:
        parts.append(f"{_bytes(log.checkpoint_bytes)} the last")
    return ", ".join(parts)


def _bytes(value: float) -> str:
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} bytes"


def mixture_table(log: RunLog, asked: Sequence[AskedPhase]) -> str:
    """Compare each stream's share of the real tokens with the share that its phases asked for."""
    trained = {phase: sum(counts.values()) for phase, counts in log.stream_tokens.items()}
    total = sum(trained.values())
    if not total:
        return ""
    mixtures = {phase.name: phase.mixture for phase in asked}
    known = all(mixtures.get(phase) for phase, tokens in trained.items() if tokens)
    phases = [p for p in trained if trained[p]] if len(trained) > 1 else []
    colour = colours(log, asked)
    names = [name for phase in asked for name in phase.mixture]
    names += [name for counts in log.stream_tokens.values() for name in counts]

    def row(title: str, streams: Sequence[str], epochs: str) -> list[str]:
        tokens = sum(counts[s] for counts in log.stream_tokens.values() for s in streams)
        goal = (
            sum(mixtures.get(p, {}).get(s, 0.0) * trained[p] for p in trained for s in streams)
            / total
        )
        cells = [
            title,
            si(tokens),
            epochs,
            _percent(goal, 2) if known else NONE,
            _percent(tokens / total, 2),
            _signed(100 * (tokens / total - goal) if known else None, 2),
        ]
        for phase in phases:
            wanted = [w for s in streams if (w := mixtures.get(phase, {}).get(s)) is not None]
            share = sum(log.stream_tokens[phase][s] for s in streams) / trained[phase]
            cells.append(f"{_percent(sum(wanted) if wanted else None, 1)} → {_percent(share, 1)}")
        return cells

    streams = list(dict.fromkeys(names))
    rows = []
    for stream in streams:
        times = log.epochs.get(stream)
        title = f'<span class="key {colour[stream]}"></span>{escape(stream)}'
        rows.append(row(title, [stream], NONE if times is None else f"{times:.3g}"))
    domain_of = {stream: log.domains.get(stream, stream) for stream in streams}
    for domain in dict.fromkeys(domain_of.values()):
        of_domain = [stream for stream in streams if domain_of[stream] == domain]
        if of_domain != [domain]:
            rows.append(row(f"domain {escape(domain)}", of_domain, NONE))
    head = ["stream", "real tokens", "epochs", "asked", "realised", "difference, points", *phases]
    return table(head, rows, "Mixture asked and realised", "wide")


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
        bar = "" if accuracy is None else _bar(accuracy)
        rows.append(
            [
                f"<b>{escape(name)}</b>" if name == "all" else escape(name),
                _plain(loss, ".3f"),
                _plain(unigram, ".3f"),
                _signed(gain, 3),
                bar + _percent(accuracy),
                _percent(scores.get("unigram_accuracy")),
                _plain(scores.get("masked_tokens"), ",.0f"),
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


def _bar(share: float) -> str:
    return f'<span class="bar"><i style="width:{100 * min(1.0, max(0.0, share)):.1f}%"></i></span>'


def fill_mask(evaluation: dict[str, Any]) -> str:
    examples = evaluation.get("fill_mask")
    cards = []
    for example in examples[:SHOWN_EXAMPLES] if isinstance(examples, list) else ():
        if not isinstance(example, dict):
            continue
        expected, guesses = example.get("expected"), example.get("predictions")
        rows = []
        for guess in guesses if isinstance(guesses, list) else ():
            if not isinstance(guess, dict):
                continue
            token, probability = str(guess.get("token", "")), number(guess.get("probability"))
            right = expected is not None and token.strip() == str(expected).strip()
            rows.append(
                f"<li{' class=right' if right else ''}><code>{escape(token.strip() or repr(token))}"
                f"</code>{_bar(probability or 0.0)}<span>{_percent(probability)}</span></li>"
            )
        text = escape(str(example.get("text", ""))).replace("[MASK]", "<mark>[MASK]</mark>")
        answer = "" if expected is None else f"expected <code>{escape(str(expected))}</code>"
        guessed = f"<ol>{''.join(rows)}</ol><p>{answer}</p>"
        cards.append(f'<article><pre tabindex="0">{text}</pre>{guessed}</article>')
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def events(log: RunLog) -> str:
    """List what happened besides steps, evaluations and checkpoints, which the curves show."""
    counts = ", ".join(f"{count:,} {escape(kind)}" for kind, count in log.event_counts.items())
    if not counts:
        return ""
    rows = []
    for event in list(log.events)[-SHOWN_EVENTS:]:
        time_s, step = number(event.get("time_s")), number(event.get("step"))
        rest = {k: v for k, v in event.items() if k not in ("event", "time_s", "step")}
        details = "; ".join(
            f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in rest.items()
        )
        rows.append(
            [
                NONE if time_s is None else duration(time_s),
                _plain(step, ",.0f"),
                escape(str(event.get("event", ""))),
                escape(details if len(details) <= 400 else details[:399] + "…"),
            ]
        )
    shown = table(["wall time", "step", "event", "details"], rows, "Events", "wide events")
    return f'<p class="note">Lines in the log: {counts}.</p>{shown if rows else ""}'


def recipe(text: str) -> str:
    if not text:
        return ""
    return (
        "<details><summary>config.yaml, resolved</summary>"
        f'<pre class="code" tabindex="0">{escape(text)}</pre></details>'
    )
