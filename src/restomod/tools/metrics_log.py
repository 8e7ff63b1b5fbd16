"""Read a run's metrics.jsonl in one pass and bounded memory, for the report.

In: the lines that training appends, one JSON object each, up to millions. Out: a `RunLog` of totals
and of curves downsampled to a few hundred buckets that keep every bucket's lowest and highest
value, so that a spike of a single step survives. `tools/report.py` calls this.

A killed run may leave a line cut short, and a resume repeats the steps since its checkpoint: both
are expected here. `tokens`, `real_tokens` and `masked_tokens` count from the start of the run.
"""

import json
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CURVES = (
    "loss",
    "accuracy",
    "lr",
    "grad_norm",
    "tokens_per_s",
    "packing_efficiency",
    "data_wait_fraction",
    "mfu",
)
MAX_BUCKETS = 600
FINAL_LINES = 50
LARGEST = 1e100  # beyond it a number is as good as infinite, and sums of it would be


@dataclass(slots=True)
class Spread:
    """What a bucket keeps of one curve."""

    low: float
    high: float
    total: float
    count: int

    @property
    def mean(self) -> float:
        return self.total / self.count


@dataclass(slots=True)
class Bucket:
    """Consecutive log lines; `breaks` when a resume went back or a new phase began with them."""

    tokens: tuple[float, float]
    time_s: tuple[float, float]
    spreads: dict[Hashable, Spread]
    breaks: bool

    def merge(self, later: "Bucket") -> "Bucket":
        spreads = dict(self.spreads)
        for key, b in later.spreads.items():
            a = spreads.get(key)
            spreads[key] = (
                Spread(min(a.low, b.low), max(a.high, b.high), a.total + b.total, a.count + b.count)
                if a
                else b
            )
        tokens = (self.tokens[0], later.tokens[1])
        return Bucket(tokens, (self.time_s[0], later.time_s[1]), spreads, self.breaks)


class Downsampled:
    """Curves over a stream of unknown length: when buckets grow too many, pairs of them merge."""

    def __init__(self, max_buckets: int = MAX_BUCKETS) -> None:
        self._limit = max_buckets
        self._lines_per_bucket = 1
        self._buckets: list[Bucket] = []
        self._xs: list[tuple[float, float]] = []
        self._values: defaultdict[Hashable, list[float]] = defaultdict(list)
        self._breaks = False

    def add(
        self, tokens: float, time_s: float, values: Mapping[Any, float], breaks: bool = False
    ) -> None:
        if breaks:
            self._flush()
            self._breaks = True
        self._xs.append((tokens, time_s))
        for key, value in values.items():
            self._values[key].append(value)
        if len(self._xs) >= self._lines_per_bucket:
            self._flush()

    def buckets(self) -> list[Bucket]:
        self._flush()
        return self._buckets

    def _flush(self) -> None:
        if not self._xs:
            return
        (tokens_0, time_0), (tokens_1, time_1) = self._xs[0], self._xs[-1]
        spreads = {k: Spread(min(v), max(v), sum(v), len(v)) for k, v in self._values.items()}
        self._buckets.append(Bucket((tokens_0, tokens_1), (time_0, time_1), spreads, self._breaks))
        self._xs, self._values, self._breaks = [], defaultdict(list), False
        if len(self._buckets) > self._limit:
            self._buckets = merged(self._buckets, 2)
            self._lines_per_bucket *= 2
            # Breaks stay apart: very many of them may leave more buckets than asked for.
            self._limit = max(self._limit, 2 * len(self._buckets))


def merged(buckets: list[Bucket], group: int) -> list[Bucket]:
    """Merge up to `group` neighbours into one, never across a break."""
    out: list[Bucket] = []
    size = 0
    for bucket in buckets:
        if out and size < group and not bucket.breaks:
            out[-1] = out[-1].merge(bucket)
            size += 1
        else:
            out.append(bucket)
            size = 1
    return out


@dataclass
class Average:
    """A weighted mean."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float | None, weight: float) -> None:
        if value is not None:
            self.total += value * weight
            self.weight += weight

    @property
    def mean(self) -> float | None:
        return self.total / self.weight if self.weight > 0 else None


@dataclass
class PhaseSpan:
    """Where one phase was trained; `tokens` and `time_s` are (first, last)."""

    name: str
    tokens: tuple[float, float]
    time_s: tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """An event's place on both horizontal axes."""

    tokens: float
    time_s: float
    step: float | None


@dataclass
class RunLog:
    """Everything the report says about the training of a run."""

    lines: int = 0
    unreadable: int = 0
    cut_short: bool = False
    train_lines: int = 0
    repeated_lines: int = 0
    step: float = 0.0
    tokens: float = 0.0
    real_tokens: float | None = None
    masked_tokens: float | None = None
    time_s: float = 0.0
    final_losses: deque[float] = field(default_factory=lambda: deque(maxlen=FINAL_LINES))
    nonfinite_losses: int = 0
    nonfinite_step: float | None = None
    step_time_s: float = 0.0
    step_tokens: float = 0.0
    mfu: Average = field(default_factory=Average)
    data_wait: Average = field(default_factory=Average)
    packing: Average = field(default_factory=Average)
    best_eval: tuple[float, float | None] | None = None
    train: Downsampled = field(default_factory=Downsampled)
    evals: Downsampled = field(default_factory=lambda: Downsampled(300))
    phases: list[PhaseSpan] = field(default_factory=list)
    stream_tokens: dict[str, defaultdict[str, float]] = field(default_factory=dict)
    resumes: list[Mark] = field(default_factory=list)
    checkpoints: list[Mark] = field(default_factory=list)
    checkpoint_s: Average = field(default_factory=Average)
    checkpoint_bytes: float | None = None
    event_counts: Counter[str] = field(default_factory=Counter)
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=100))
    _waiting_resumes: list[tuple[float | None, float]] = field(default_factory=list)
    _last_step: float = 0.0
    asked: dict[str, dict[str, float]] = field(default_factory=dict)
    """Share of tokens asked of each stream, by phase, as the run worked it out."""
    domains: dict[str, str] = field(default_factory=dict)
    """Domain of each stream."""
    begun: dict[str, Any] = field(default_factory=dict)
    """The last line that tells of a start or a resume."""
    last_eval: dict[str, Any] = field(default_factory=dict)
    """The last evaluation's line."""
    _epochs: Any = None
    _last_eval_tokens: float = -1.0

    @property
    def mean_tokens_per_s(self) -> float | None:
        """Token slots per second of training: stops, evaluations and repeated steps left out."""
        return self.step_tokens / self.step_time_s if self.step_time_s > 0 else None

    @property
    def epochs(self) -> dict[str, float]:
        """Passes over each stream so far, as last logged."""
        return numbers(self._epochs)

    def add(self, line: Mapping[str, Any]) -> None:
        kind = line.get("event")
        if not isinstance(kind, str):
            kind = "(no event name)"
        self.event_counts[kind] += 1
        time_s = number(line.get("time_s"))
        self.time_s = max(self.time_s, time_s or 0.0)
        if kind == "train":
            self._train(line, self.time_s if time_s is None else time_s)
        elif kind == "eval":
            self._eval(line, self.time_s if time_s is None else time_s)
        elif kind == "checkpoint":
            step = number(line.get("step"))
            self.checkpoints.append(Mark(self.tokens, self.time_s, step))
            self.checkpoint_s.add(number(line.get("seconds")), 1.0)
            self.checkpoint_bytes = number(line.get("bytes")) or self.checkpoint_bytes
        elif kind != "samples":
            if isinstance(line.get("asked"), dict):
                self.asked = {str(phase): numbers(of) for phase, of in line["asked"].items()}
            domains = line.get("stream_domains")
            if isinstance(domains, dict):
                self.domains = {str(stream): str(domain) for stream, domain in domains.items()}
            if kind in ("start", "resume"):
                self.begun = dict(line)
            if kind == "resume":
                self._waiting_resumes.append((number(line.get("step")), self.time_s))
            self.events.append(dict(line))

    def _train(self, line: Mapping[str, Any], time_s: float) -> None:
        step, tokens = number(line.get("step")), number(line.get("tokens"))
        if step is None or tokens is None:
            self.unreadable += 1
            return
        phase = str(line.get("phase", ""))
        breaks = bool(self.phases) and (step <= self._last_step or phase != self.phases[-1].name)
        self._last_step = step
        self.train_lines += 1
        values = {k: v for k in CURVES if (v := number(line.get(k))) is not None}
        if not values.get("mfu"):
            values.pop("mfu", None)  # logged as 0 where the device's peak is unknown
        if "loss" in values:
            self.final_losses.append(values["loss"])
        elif "loss" in line:
            self.nonfinite_losses += 1
            self.nonfinite_step = step if self.nonfinite_step is None else self.nonfinite_step
        shares = numbers(line.get("mixture"))
        mixture = {("mixture", stream): share for stream, share in shares.items()}
        self.train.add(tokens, time_s, {**values, **mixture}, breaks)
        for resumed_step, resumed_s in self._waiting_resumes:
            self.resumes.append(Mark(tokens, resumed_s, resumed_step))
        self._waiting_resumes.clear()
        self._span(phase, tokens, time_s)
        if step <= self.step:
            self.repeated_lines += 1
            return
        # Totals count each step once, however often resumes repeated it.
        new_tokens = tokens - self.tokens
        real_tokens = number(line.get("real_tokens"))
        new_real = (
            new_tokens if real_tokens is None else max(0.0, real_tokens - (self.real_tokens or 0.0))
        )
        self.step, self.tokens = step, tokens
        self.real_tokens = self.real_tokens if real_tokens is None else real_tokens
        masked_tokens = number(line.get("masked_tokens"))
        self.masked_tokens = self.masked_tokens if masked_tokens is None else masked_tokens
        streams = self.stream_tokens.setdefault(phase, defaultdict(float))
        for stream, share in shares.items():
            streams[stream] += share * new_real
        self._epochs = line.get("epochs", self._epochs)
        self.packing.add(values.get("packing_efficiency"), new_tokens)
        speed = values.get("tokens_per_s", 0.0)
        if speed > 0 and new_tokens > 0:
            seconds = new_tokens / speed
            self.step_tokens += new_tokens
            self.step_time_s += seconds
            self.mfu.add(values.get("mfu"), seconds)
            self.data_wait.add(values.get("data_wait_fraction"), seconds)

    def _span(self, phase: str, tokens: float, time_s: float) -> None:
        if self.phases and self.phases[-1].name == phase:
            span = self.phases[-1]
            span.tokens = (min(span.tokens[0], tokens), max(span.tokens[1], tokens))
            span.time_s = (span.time_s[0], time_s)
        else:
            self.phases.append(PhaseSpan(phase, (tokens, tokens), (time_s, time_s)))

    def _eval(self, line: Mapping[str, Any], time_s: float) -> None:
        domains = line.get("domains")
        values: dict[Hashable, float] = {}
        for domain, scores in domains.items() if isinstance(domains, dict) else ():
            for name, value in numbers(scores).items():
                if name in ("loss", "accuracy"):
                    values[name, domain] = value
        tokens = number(line.get("tokens"))
        tokens = self.tokens if tokens is None else tokens
        if values:
            self.evals.add(tokens, time_s, values, tokens <= self._last_eval_tokens)
            self._last_eval_tokens = tokens
        self.last_eval = dict(line)
        loss = values.get(("loss", "all"))
        if loss is not None and (self.best_eval is None or loss < self.best_eval[0]):
            self.best_eval = (loss, number(line.get("step")))


def read_log(path: Path, last_step: float = float("inf")) -> RunLog:
    """Read metrics.jsonl up to a step; lines that are no JSON object are counted and left out."""
    log = RunLog()
    last_is_broken = False
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            if text.isspace():
                continue
            log.lines += 1
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            last_is_broken = not isinstance(line, dict)
            if isinstance(line, dict) and (number(line.get("step")) or 0.0) <= last_step:
                log.add(line)
            log.unreadable += last_is_broken
    log.cut_short = last_is_broken
    return log


def number(value: Any) -> float | None:
    """Return a finite float, or None for whatever else a file may hold."""
    kind = type(value)
    if (kind is float or kind is int) and -LARGEST < value < LARGEST:
        return float(value)
    return None


def numbers(value: Any) -> dict[str, float]:
    """Return the finite numbers of a mapping, and nothing for what is no mapping."""
    if not isinstance(value, dict):
        return {}
    return {str(k): n for k, v in value.items() if (n := number(v)) is not None}
