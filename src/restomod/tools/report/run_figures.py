"""Which figures the report of one run shows.

In: a run's record. Out: HTML strings, every name in them escaped. `run.py` calls this;
`figures.py` draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from restomod.tools.record.downsampled import Bucket
from restomod.tools.record.metrics_log import PhaseSpan, RunLog
from restomod.tools.record.run_record import RunRecord
from restomod.tools.report.figures import Canvas, Curve, Figure, Level, axes, draw, draw_all

COLOURS = 8
PERCENT = (0.0, 100.0)
LOSS_UNIT = "nats per predicted token"
SCHEDULES = (
    ("lr", "Learning rate", ""),
    ("weight_decay", "Weight decay", ""),
    ("batch_rows", "Rows of a batch", "rows"),
    ("mask_rate", "Mask rate", "%"),
)
"""Keys of log lines that the recipe decides, their titles and units."""
MEASURED = (
    ("grad_norm", "Gradient norm", "L2 norm"),
    ("tokens_per_s", "Throughput", "token slots per second"),
    ("mfu", "Model FLOPs utilisation", "%"),
    ("data_wait_fraction", "Waiting for data", "%"),
    ("packing_efficiency", "Packing efficiency", "%"),
)
"""The same of what was measured."""
OTHERS = {
    "views": ("view", "Evaluation loss at other mask rates and lengths", LOSS_UNIT),
    "probes": ("probe", "Accuracy of probes", "%"),
}
"""Figures of what else evaluations log, where they do: its kind, title and unit."""
LOG_FROM = {"grad_norm": 30.0}
"""Factors from which an axis is logarithmic."""


def figures(run: RunRecord) -> tuple[str, str, list[str]]:
    """Return the training figures, the mixture's figure, and what to say of figures left out."""
    log = run.log
    canvas = Canvas(
        axes([log]), [(mark, "") for mark in log.resumes], log.checkpoints, phases=log.phases
    )
    changing, constant = [], []
    for figure in _schedules(log):
        lows, highs = ends(figure.curves[0], figure.curves[0].buckets)
        if lows == highs < math.inf and figure.slug != "lr":
            constant.append(f"{figure.title} {constant_text(lows, figure.unit)} throughout.")
        else:
            changing.append(figure)
    html, missing = draw_all([*_learning(run), *changing, *_measured(log)], canvas)
    notes = constant + ([f"Nothing logged for: {', '.join(missing)}."] if missing else [])
    return html, draw(_mixture(run), canvas), notes


def ends(curve: Curve, buckets: Iterable[Bucket]) -> tuple[float, float]:
    """Return a curve's lowest and highest value; infinity, twice, where it has none."""
    spreads = [b.spreads[curve.key] for b in buckets if curve.key in b.spreads]
    return (
        min((s.low * curve.scale for s in spreads), default=math.inf),
        max((s.high * curve.scale for s in spreads), default=math.inf),
    )


def colours(run: RunRecord) -> dict[str, str]:
    """Give every stream and domain its CSS class: a name has the same colour everywhere."""
    names = [name for phase in run.asked for name in phase.mixture]
    names += [name for streams in run.log.stream_tokens.values() for name in streams]
    names += domains(run.log)
    names = [name for name in dict.fromkeys(names) if name != "all"]
    classes = {name: f"c{index % COLOURS + 1}" for index, name in enumerate(names)}
    return classes | {"all": "ink"}


def domains(log: RunLog) -> list[str]:
    """Return the domains that were evaluated."""
    return list(dict.fromkeys([*evaluated(log, "loss"), *evaluated(log, "accuracy")]))


def evaluated(log: RunLog, kind: str) -> list[str]:
    """Return of what a kind of value was logged at evaluations: domains, views or probes."""
    keys = {key: None for bucket in log.evals.buckets() for key in bucket.spreads}
    return [str(key[1]) for key in keys if isinstance(key, tuple) and key[0] == kind]


def constant_text(value: float, unit: str) -> str:
    """Write the value of a schedule that never changes, as recipes do."""
    return f"{value:g}{unit}" if unit == "%" else f"{value:,g}"


def scale_of(unit: str) -> float:
    """Return by what logged values are multiplied: shares are shown in percent."""
    return 100.0 if unit == "%" else 1.0


def _learning(run: RunRecord) -> list[Figure]:
    log, colour = run.log, colours(run)
    train, evals = log.train.buckets(), log.evals.buckets()
    shown = [d for d in domains(log) if d != "all"][:COLOURS]
    shown += ["all"] if "all" in domains(log) else []

    def held_out(name: str, scale: float = 1.0) -> list[Curve]:
        return [
            Curve(d, (name, d), colour[d], evals, smooth=False, dots=True, scale=scale)
            for d in shown
        ]

    loss = Curve("training", "loss", "train", train, raw=True)
    accuracy = Curve("training", "accuracy", "train", train, scale=100.0)
    others = [
        Figure(
            slug,
            title,
            unit,
            [
                Curve(
                    name,
                    (kind, name),
                    f"c{n % COLOURS + 1}",
                    evals,
                    smooth=False,
                    dots=True,
                    scale=scale_of(unit),
                )
                for n, name in enumerate(evaluated(log, kind))
            ],
            log_from=3.0 if unit == LOSS_UNIT else math.inf,
        )
        for slug, (kind, title, unit) in OTHERS.items()
        if evaluated(log, kind)
    ]
    return [
        Figure("loss", "Loss", LOSS_UNIT, [loss, *held_out("loss")], wide=True, log_from=3.0),
        Figure("eval-loss", "Evaluation loss", LOSS_UNIT, held_out("loss"), log_from=3.0),
        Figure(
            "accuracy",
            "Masked-token accuracy",
            "%",
            [accuracy, *held_out("accuracy", 100.0)],
            y_limits=PERCENT,
        ),
        *others,
    ]


def slug(key: str) -> str:
    """Return a figure's name in the page's addresses."""
    return key.replace("_", "-")


def _schedules(log: RunLog) -> list[Figure]:
    train = log.train.buckets()
    return [
        Figure(
            slug(key),
            title,
            unit,
            [Curve(title, key, "train", train, smooth=False, scale=scale_of(unit))],
        )
        for key, title, unit in SCHEDULES
    ]


def _measured(log: RunLog) -> list[Figure]:
    train = log.train.buckets()
    return [
        Figure(
            slug(key),
            title,
            unit,
            [Curve(title, key, "train", train, raw=True, scale=scale_of(unit))],
            y_limits=PERCENT if unit == "%" else None,
            log_from=LOG_FROM.get(key, math.inf),
        )
        for key, title, unit in MEASURED
    ]


def _mixture(run: RunRecord) -> Figure:
    log, colour = run.log, colours(run)
    streams: dict[str, float] = {}
    for counts in log.stream_tokens.values():
        for stream, tokens in counts.items():
            streams[stream] = streams.get(stream, 0.0) + tokens
    largest = sorted(streams, key=lambda stream: -streams[stream])[:COLOURS]
    some = f"The {COLOURS} largest of {len(streams)} streams. " if len(streams) > COLOURS else ""
    train = log.train.buckets()
    return Figure(
        "mixture",
        "Share of real tokens",
        "%",
        [Curve(s, ("mixture", s), colour[s], train, scale=100.0) for s in largest],
        wide=True,
        y_limits=PERCENT,
        levels=[Level(colour[stream], _asked(run, stream)) for stream in largest],
        note=f"{some}Solid: realised, smoothed. Dashed: asked by the recipe.",
    )


def _asked(run: RunRecord, stream: str) -> list[tuple[PhaseSpan, float]]:
    mixtures = {phase.name: phase.mixture for phase in run.asked}
    shares = [(span, mixtures.get(span.name, {}).get(stream)) for span in run.log.phases]
    return [(span, 100 * share) for span, share in shares if share is not None]


def key(log: RunLog) -> str:
    """Explain the marks that the figures of this run share."""
    items = [
        ('<path class="faint" d="M0 6h14M3 1v10M9 3v7"/>', "lowest and highest logged"),
        ('<path class="smooth" d="M0 6h14"/>', "smoothed"),
    ]
    if log.resumes:
        items.append(('<path class="r" d="M7 0v12"/>', "resume"))
    if log.checkpoints:
        items.append(('<circle class="k" cx="7" cy="6" r="2.5"/>', "checkpoint"))
    if len(log.phases) > 1:
        items.append(('<path class="p" d="M7 0v12"/>', "phase begins"))
    marks = "".join(
        f'<span><svg aria-hidden="true" viewBox="0 0 14 12">{mark}</svg>{name}</span>'
        for mark, name in items
    )
    return f'<p class="eventkey">{marks}</p>'
