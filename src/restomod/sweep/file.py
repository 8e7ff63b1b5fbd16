"""The sweep file: W&B's format, as far as it can be done without W&B's server.

In: a YAML file that `wandb sweep` takes too. Out: a `SweepFile`, checked as strictly as a recipe;
what W&B knows and we cannot do is refused by name, never ignored. Imports no torch and no Optuna.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.impossible import NAME
from restomod.strict import load_verbatim
from restomod.sweep.space import WANDBS_ONLY, Parameter, impossible_parameter

MACROS = ("${env}", "${interpreter}", "${program}", "${args_no_hyphens}")
"""Words of `command` that W&B's agent and we replace."""
METRIC = re.compile(r"train/\w+|eval/[^/]+/(loss|accuracy)")
COPY = "sweep.yaml"
"""In a sweep's folder: the file that its trials were drawn from."""
OURS = ("run_name", "runs_dir")
"""Recipe keys that tell trials apart, which no parameter may set."""


@dataclass
class Metric:
    """What trials are compared by."""

    name: str = ""
    """As W&B names it: eval/all/loss, eval/DOMAIN/accuracy, train/loss, ..."""
    goal: str = field(default="minimize", metadata={"choices": ("minimize", "maximize")})
    """minimize or maximize."""
    target: Any = field(default=None, metadata=WANDBS_ONLY)
    impute: Any = field(default=None, metadata=WANDBS_ONLY)
    impute_while_running: Any = field(default=None, metadata=WANDBS_ONLY)


@dataclass
class EarlyTerminate:
    """Trials whose metric is not among the best 1/eta of those that came as far are stopped, when
    it has been logged min_iter, min_iter x eta, min_iter x eta^2, ... times."""

    type: str = field(default="hyperband", metadata={"choices": ("hyperband",)})
    """hyperband, which in W&B's files means successive halving."""
    min_iter: int = 0
    """Values of the metric after which a trial is first judged."""
    max_iter: int = 0
    """Instead of min_iter, with `s`: the first judgement is after max_iter / eta^s values."""
    s: int = 0
    """Judgements below max_iter."""
    eta: int = 3
    """Trials of which one goes on; the next judgement is after eta times as many values."""
    strict: bool = True
    """W&B's: whether a trial's value counts as it stands when it is judged, rather than its best so
    far. Only true can be done."""

    @property
    def first(self) -> int:
        """Values of the metric after which a trial is first judged."""
        return self.min_iter or max(1, self.max_iter // self.eta**self.s)


@dataclass
class SweepFile:
    """One sweep."""

    name: str = ""
    """Name of the sweep and of its folder; the file's own by default."""
    description: str = ""
    """What it is for."""
    program: str = "train.py"
    """What a trial runs."""
    command: list[str] = field(default_factory=list)
    """The trial's command line, macros and all; what follows ${program} is a recipe."""
    method: str = field(default="", metadata={"choices": ("grid", "random", "bayes")})
    """grid: every combination; random; bayes: where trials were good (Optuna's TPE)."""
    metric: Metric = field(default_factory=Metric)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    """Recipe keys, and what is tried for each."""
    early_terminate: EarlyTerminate | None = None
    run_cap: int = 0
    """Most trials; a grid has none by default."""
    project: str = ""
    """W&B project of the trials."""
    entity: str = ""
    """W&B entity of the trials."""
    apiVersion: Any = field(default=None, metadata=WANDBS_ONLY)
    kind: Any = field(default=None, metadata=WANDBS_ONLY)
    controller: Any = field(default=None, metadata=WANDBS_ONLY)
    job: Any = field(default=None, metadata=WANDBS_ONLY)
    image_uri: Any = field(default=None, metadata=WANDBS_ONLY)
    metrics: Any = field(default=None, metadata=WANDBS_ONLY)
    scheduler: Any = field(default=None, metadata=WANDBS_ONLY)

    @property
    def foreseen(self) -> bool:
        """Whether no trial depends on how others went."""
        return self.method != "bayes" and self.early_terminate is None

    def run_name(self, number: int) -> str:
        """Return a trial's run_name: the same whenever it runs."""
        return f"{self.name}-{number:03d}"

    @staticmethod
    def given(values: dict[str, Any]) -> list[str]:
        """Return a trial's values as `train.py` takes them."""
        return [f"{key}={value}" for key, value in values.items()]

    def words(self, values: dict[str, Any]) -> list[str]:
        """Return what follows the program in a trial's command line, without a run_name: that one
        is for W&B's agent."""
        given = self.given(values)
        words: list[str] = []
        for word in self.command[self.command.index("${program}") + 1 :]:
            words += given if word == "${args_no_hyphens}" else [word]
        return [word for word in words if not word.startswith("run_name=")]

    def before_program(self) -> list[str]:
        """Return what precedes the program in a trial's command line."""
        meaning = {"${env}": "/usr/bin/env", "${interpreter}": "python"}
        before = self.command[: self.command.index("${program}")]
        return [meaning.get(word, word) for word in before]


def load_sweep(path: Path) -> SweepFile:
    """Read a sweep file; raise UserError listing all that is wrong with it."""
    sweep = load_verbatim(path, SweepFile, _impossible)
    sweep.name = sweep.name or path.stem
    if not NAME.fullmatch(sweep.name):
        raise UserError(
            f"{path}: name: {sweep.name!r}: use letters, digits, `.`, `_` and `-`, a letter or "
            "digit first"
        )
    return sweep


def _impossible(sweep: SweepFile) -> list[tuple[str, str]]:
    """Return (key, reason) for all that cannot be done."""
    bad = _wandbs(sweep, "") + _wandbs(sweep.metric, "metric.")
    if not sweep.method:
        bad.append(("method", "is missing: grid, random or bayes"))
    if not sweep.metric.name:
        bad.append(("metric.name", "is missing: what trials are compared by, as eval/all/loss"))
    elif not METRIC.fullmatch(sweep.metric.name):
        bad.append(
            (
                "metric.name",
                f"{sweep.metric.name!r}: write train/FIELD, eval/all/loss or eval/DOMAIN/loss (or "
                "accuracy); docs/metrics.md has the fields",
            )
        )
    bad += _impossible_command(sweep)
    if not sweep.parameters:
        bad.append(("parameters", "is missing: recipe keys, and what is tried for each"))
    for key, parameter in sweep.parameters.items():
        if key in OURS:
            bad.append((f"parameters.{key}", "tells trials apart, and is not a sweep's to set"))
        bad += [
            (f"parameters.{key}.{name}".rstrip("."), reason)
            for name, reason in [
                *_wandbs(parameter, ""),
                *impossible_parameter(parameter, sweep.method),
            ]
        ]
    if sweep.run_cap < 0:
        bad.append(("run_cap", "must be positive"))
    elif not sweep.run_cap and sweep.method in ("random", "bayes"):
        bad.append(("run_cap", f"is missing: the trials after which {sweep.method} search ends"))
    return bad + _impossible_stop(sweep.early_terminate)


def _wandbs(section: Any, prefix: str) -> list[tuple[str, str]]:
    reason = "only W&B's server does this: take it out, or run the file with `wandb sweep`"
    return [
        (f"{prefix}{option.name}", reason)
        for option in dataclasses.fields(section)
        if option.metadata.get("wandbs_only") and getattr(section, option.name) is not None
    ]


def _impossible_command(sweep: SweepFile) -> list[tuple[str, str]]:
    words, bad = sweep.command, []
    if words.count("${program}") != 1 or words.count("${args_no_hyphens}") != 1:
        return [
            (
                "command",
                "write [${env}, python, ${program}, RECIPE.yaml, ${args_no_hyphens}], one word a "
                "line: train.py takes key=value words, which W&B's own default does not give",
            )
        ]
    program = words.index("${program}")
    if words.index("${args_no_hyphens}") < program:
        bad.append(("command", "${args_no_hyphens} stands behind ${program}"))
    for n, word in enumerate(words):
        if word.startswith("${") and word not in MACROS:
            bad.append((f"command.{n}", f"{word}: only {', '.join(MACROS)} are replaced"))
        elif n > program and word.startswith("-"):
            bad.append((f"command.{n}", f"{word}: write key=value (start.fork, start.phase, ...)"))
    if not any("=" not in word and not word.startswith("$") for word in words[program + 1 :]):
        bad.append(("command", "names no recipe behind ${program}"))
    return bad


def _impossible_stop(stop: EarlyTerminate | None) -> list[tuple[str, str]]:
    if stop is None:
        return []
    bad = []
    if min(stop.min_iter, stop.max_iter, stop.s) < 0:
        bad.append(("early_terminate", "min_iter, max_iter and s must not be negative"))
    elif bool(stop.min_iter) == bool(stop.max_iter) or bool(stop.max_iter) != bool(stop.s):
        bad.append(("early_terminate", "give min_iter, or max_iter and s"))
    if stop.eta < 2:
        bad.append(("early_terminate.eta", f"{stop.eta}: must be at least 2"))
    if not stop.strict:
        bad.append(
            (
                "early_terminate.strict",
                "a trial is judged by its value when it is judged: only true can be done",
            )
        )
    return bad
