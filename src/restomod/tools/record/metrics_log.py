"""Read a run's metrics.jsonl in one pass and bounded memory, for the report.

In: the lines that training appends, one JSON object each, up to millions. Out: a `RunLog` of totals
and of curves downsampled to a few hundred buckets. `run_record.py` and `following.py` call this.

A killed run may leave a line cut short, and a resume repeats the steps since its checkpoint: both
are expected here. `tokens`, `real_tokens` and `masked_tokens` count from the start of the run.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restomod.tools.record.downsampled import Downsampled, Thinned

CURVES = (
    "loss",
    "accuracy",
    "lr",
    "weight_decay",
    "batch_rows",
    "mask_rate",
    "grad_norm",
    "tokens_per_s",
    "packing_efficiency",
    "data_wait_fraction",
    "mfu",
)
FINAL_LINES = 50
KEPT_SAMPLES = 8
NUMBERS = (float, int)
LARGEST = 1e100  # beyond it a number is as good as infinite, and sums of it would be


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
    samples: Thinned = field(default_factory=lambda: Thinned(KEPT_SAMPLES))
    """Lines of `samples`."""
    newest: str = ""
    """Event of the newest line."""
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
    def final_loss(self) -> float | None:
        """Mean of the last losses."""
        return sum(self.final_losses) / len(self.final_losses) if self.final_losses else None

    @property
    def mean_packing(self) -> float | None:
        """Real tokens per slot."""
        if self.real_tokens and self.tokens:
            return self.real_tokens / self.tokens
        return self.packing.mean

    @property
    def epochs(self) -> dict[str, float]:
        """Passes over each stream so far, as last logged."""
        return numbers(self._epochs)

    def add(self, line: Mapping[str, Any]) -> None:
        kind = line.get("event")
        if not isinstance(kind, str):
            kind = "(no event name)"
        self.event_counts[kind] += 1
        self.newest = kind
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
        elif kind == "samples":
            self.samples.add(dict(line))
        else:
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
        values: dict[Any, float] = {}
        for key in CURVES:  # not by `number`: this is most of the work of a long log
            value: Any = line.get(key)
            if type(value) in NUMBERS and -LARGEST < value < LARGEST:
                values[key] = value
        if not values.get("mfu"):
            values.pop("mfu", None)  # logged as 0 where the device's peak is unknown
        if "loss" in values:
            self.final_losses.append(values["loss"])
        elif "loss" in line:
            self.nonfinite_losses += 1
            self.nonfinite_step = step if self.nonfinite_step is None else self.nonfinite_step
        shares = numbers(line.get("mixture"))
        curves = dict(values)
        for stream, share in shares.items():
            curves["mixture", stream] = share
        self.train.add(tokens, time_s, curves, breaks)
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
        values: dict[Hashable, float] = {}
        for domain, scores in _mappings(line.get("domains")):
            for name, value in numbers(scores).items():
                if name in ("loss", "accuracy"):
                    values[name, domain] = value
        for view, of in _mappings(line.get("views")):
            if (seen := numbers(of.get("all")).get("loss")) is not None:
                values["view", view] = seen
        for probe, scores in _mappings(line.get("probes")):
            if (right := numbers(scores).get("accuracy")) is not None:
                values["probe", probe] = right
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


def _mappings(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return a mapping's entries that are mappings themselves."""
    found = value.items() if isinstance(value, dict) else ()
    return [(str(name), of) for name, of in found if isinstance(of, dict)]


def number(value: Any) -> float | None:
    """Return a finite float, or None for whatever else a file may hold."""
    if type(value) in NUMBERS and -LARGEST < value < LARGEST:
        return float(value)
    return None


def numbers(value: Any) -> dict[str, float]:
    """Return the finite numbers of a mapping, and nothing for what is no mapping."""
    if not isinstance(value, dict):
        return {}
    return {str(k): n for k, v in value.items() if (n := number(v)) is not None}
