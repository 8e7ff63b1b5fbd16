"""What no recipe may say: values and combinations that cannot be trained.

In: a recipe whose keys and types are right. Out: (key, reason) for all that is wrong; a function
for each section. `recipe.py` calls it. Imports no torch.
"""

from __future__ import annotations

import re

from restomod import extensions
from restomod.config import (
    ALERTS,
    CardConfig,
    OptimizerConfig,
    Recipe,
    StreamConfig,
)
from restomod.impossible_phase import RATES, is_rate, phase_problems
from restomod.units import parse_duration, parse_slots

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""W&B's identifiers and names of files have no more than 128 characters."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FORK = re.compile(r"(.+)@([0-9]+)")
"""RUN@STEP."""
MOST_LANES = 1 << 20
MOST_SECONDS = 10**9
LARGEST = {"layers": 1000, "hidden_size": 1 << 16, "intermediate_size": 1 << 20, "heads": 1 << 14,
           "local_window": 1 << 20}  # fmt: skip
"""Of a model: far beyond what anybody trains."""
LONGEST_NAME = 255
"""Bytes of a file's name."""
CARD = {
    "licence": (re.compile(r"|[a-z0-9][a-z0-9.-]*"), "apache-2.0, mit, other, ..."),
    "language": (re.compile(r"[a-z]{2,3}(-[A-Za-z]+)?|code|multilingual"), "en, de, code, ..."),
    "datasets": (re.compile(r"[\w.-]+(/[\w.-]+)?"), "owner/name"),
}
"""How the values of a model card are spelled on the hub."""


class Problems(list[tuple[str, str]]):
    """Keys, each with the reason why its value cannot be."""

    def require(self, holds: bool, key: str, reason: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.append((key, reason))


def impossible(recipe: Recipe) -> list[tuple[str, str]]:
    """Return (key, reason) for every value or combination that cannot be trained."""
    return [
        *impossible_card(recipe.card),
        *_run(recipe),
        *_model(recipe),
        *_compute(recipe),
        *_optimizer(recipe),
        *_data(recipe),
        *_phases(recipe),
        *extensions.problems(recipe),
        *_start(recipe),
        *_faults(recipe),
        *_evaluation(recipe),
        *_checkpoints(recipe),
        *_logging(recipe),
    ]


def _run(recipe: Recipe) -> Problems:
    bad = Problems()
    bad.require(
        bool(NAME.fullmatch(recipe.run_name)),
        "run_name",
        f"{recipe.run_name!r}: use letters, digits, `.`, `_` and `-`, a letter or digit first, at "
        "most 128",
    )
    bad.require(0 <= recipe.seed < 2**63, "seed", "must lie in 0 .. 2^63 - 1")
    bad.require(
        bool(recipe.tokenizer), "tokenizer", "is missing: a tokenizer.json or a folder with one"
    )
    for key in ("runs_dir", "cache_dir", "tokenizer"):
        bad.require(_is_path(getattr(recipe, key)), key, PATHS)
    return bad


PATHS = f"no name of a file or folder has more than {LONGEST_NAME} bytes, no path 4,000"


def _is_path(text: str) -> bool:
    return len(text) < 4000 and all(len(p.encode()) <= LONGEST_NAME for p in text.split("/"))


def _model(recipe: Recipe) -> Problems:
    bad = Problems()
    model = recipe.model
    for name in ("layers", "hidden_size", "heads", "intermediate_size", "global_every"):
        bad.require(getattr(model, name) > 0, f"model.{name}", "must be positive")
    for name, most in LARGEST.items():
        bad.require(getattr(model, name) <= most, f"model.{name}", f"must be at most {most:,}")
    if model.heads > 0 and model.hidden_size > 0:
        bad.require(
            model.hidden_size % (2 * model.heads) == 0,
            "model.heads",
            f"{model.heads} heads do not cut hidden_size {model.hidden_size} into even head sizes",
        )
    bad.require(
        model.local_window >= 2 and model.local_window % 2 == 0,
        "model.local_window",
        f"{model.local_window}: must be even and at least 2, half of it lies on either side",
    )
    bad.require(
        0 < model.rope_fraction <= 1
        and (model.heads <= 0 or model.positions == "alibi" or model.rope_channels > 0),
        "model.rope_fraction",
        f"{model.rope_fraction}: must lie in (0, 1] and turn two channels of a head at least",
    )
    bad.require(
        not (model.positions == "alibi" and model.rope_fraction != 1),
        "model.rope_fraction",
        "nothing reads it with model.positions: alibi",
    )
    bad.require(
        not (model.norm == "rmsnorm" and model.norm_bias),
        "model.norm_bias",
        "an rmsnorm has no bias",
    )
    bad.require(
        model.decoder_bias or not recipe.init.log_unigram_bias,
        "init.log_unigram_bias",
        "needs model.decoder_bias: true",
    )
    bad.require(
        not (recipe.init.weights and recipe.init.log_unigram_bias),
        "init.log_unigram_bias",
        "would replace the decoder's bias of init.weights",
    )
    bad.require(0 < model.norm_eps < 1, "model.norm_eps", "must lie in (0, 1)")
    bad.require(0 <= model.attention_dropout < 1, "model.attention_dropout", "must lie in [0, 1)")
    return bad


def _compute(recipe: Recipe) -> Problems:
    bad = Problems()
    compute = recipe.compute
    bad.require(compute.recompute_every >= 0, "compute.recompute_every", "must not be negative")
    bad.require(compute.logits_mb > 0, "compute.logits_mb", "must be positive")
    parallel = recipe.parallel
    bad.require(
        parallel.shard_ranks == 0 or parallel.shard_ranks > 1,
        "parallel.shard_ranks",
        f"{parallel.shard_ranks}: at least two ranks share a copy; 0 is those of a node, "
        "parallel.strategy: ddp shares none",
    )
    bad.require(
        parallel.shard_ranks == 0 or parallel.strategy == "hsdp",
        "parallel.shard_ranks",
        f"nothing reads it with parallel.strategy: {parallel.strategy}",
    )
    bad.require(
        parallel.reshard_after_forward or parallel.strategy != "ddp",
        "parallel.reshard_after_forward",
        "nothing reads it with parallel.strategy: ddp",
    )
    return bad


def _optimizer(recipe: Recipe) -> Problems:
    bad = Problems()
    optimizer = recipe.optimizer
    bad.require(is_rate(optimizer.lr, recipe), "optimizer.lr", f"{optimizer.lr}: {RATES}")
    bad.require(
        len(optimizer.betas) == 2 and all(0 <= beta < 1 for beta in optimizer.betas),
        "optimizer.betas",
        f"{optimizer.betas}: two numbers in [0, 1)",
    )
    bad.require(0 < optimizer.eps < 1, "optimizer.eps", "must lie in (0, 1)")
    bad.require(0 <= optimizer.weight_decay < 1, "optimizer.weight_decay", "must lie in [0, 1)")
    bad.require(
        0 <= optimizer.momentum < 1,
        "optimizer.momentum",
        f"{optimizer.momentum}: must lie in [0, 1)",
    )
    bad.require(
        optimizer.name == "muon" or optimizer.momentum == OptimizerConfig.momentum,
        "optimizer.momentum",
        "nothing reads it without optimizer.name: muon",
    )
    bad.require(
        optimizer.clip_norm >= 0,
        "optimizer.clip_norm",
        f"{optimizer.clip_norm}: must not be negative; 0 clips nothing",
    )
    bad.require(
        optimizer.name == "adamw" or not optimizer.clip_norm,
        "optimizer.clip_norm",
        "nothing reads it without optimizer.name: adamw (stable_adamw clips each tensor's update)",
    )
    for name in ("betas", "eps"):
        bad.require(
            not extensions.is_extension(optimizer.name)
            or getattr(optimizer, name) == getattr(OptimizerConfig(), name),
            f"optimizer.{name}",
            "nothing reads it with an optimizer of your own; see optimizer.options",
        )
    return bad


def _data(recipe: Recipe) -> Problems:
    bad = Problems()
    data = recipe.data
    bad.require(bool(data.streams), "data.streams", "is missing: name at least one data set")
    for name in ("lanes", "buffer_rows", "tokens_per_document_min"):
        bad.require(getattr(data, name) > 0, f"data.{name}", "must be positive")
    bad.require(data.lanes <= MOST_LANES, "data.lanes", f"at most {MOST_LANES:,} can be")
    for name in ("shuffle_block_documents", "shuffle_shards"):
        bad.require(getattr(data, name) > 0, f"data.{name}", "must be positive")
    for name in ("shards_open_per_rank", "cache_limit_gb", "download_attempts"):
        bad.require(getattr(data, name) > 0, f"data.{name}", "must be positive")
    bad.require(
        0 < data.download_timeout_s <= 1e6,
        "data.download_timeout_s",
        "must be positive, and at most a million",
    )
    bad.require(data.workers >= 0, "data.workers", "must not be negative")
    bad.require(data.skip_shorter_than >= 0, "data.skip_shorter_than", "must not be negative")
    for section, streams in (("data", data.streams), ("evaluation", recipe.evaluation.streams)):
        for name, stream in streams.items():
            key = f"{section}.streams.{name}"
            bad.require(bool(stream.path or stream.source), f"{key}.path", "is missing")
            for of_folders in ("path", "local"):
                bad.require(_is_path(getattr(stream, of_folders)), f"{key}.{of_folders}", PATHS)
            bad.require(
                not (stream.path and stream.source),
                f"{key}.source",
                "a stream has a path or a source, not both",
            )
            for of_folders in ("local", "column"):
                bad.require(
                    not (stream.source and getattr(stream, of_folders)),
                    f"{key}.{of_folders}",
                    "nothing reads it with a source of your own",
                )
            bad.require(stream.max_epochs > 0, f"{key}.max_epochs", "must be positive")
            bad.require(
                section == "data" or stream.max_epochs == StreamConfig.max_epochs,
                f"{key}.max_epochs",
                "nothing reads it of what is held out, of which each pass takes the same rows",
            )
    return bad


def _phases(recipe: Recipe) -> Problems:
    bad = Problems()
    bad.require(bool(recipe.phases), "phases", "is missing: describe at least one phase")
    names = [phase.name for phase in recipe.phases]
    for n, phase in enumerate(recipe.phases):
        bad.require(
            names.index(phase.name) == n, f"phases.{n}.name", f"{phase.name!r} is there twice"
        )
        bad.require(
            bool(NAME.fullmatch(phase.name)) and not phase.name.isdigit(),
            f"phases.{n}.name",
            f"{phase.name!r}: use letters, digits, `.`, `_` and `-`",
        )
        for key, reason in phase_problems(phase, recipe):
            bad.append((f"phases.{n}.{key}", reason))
    return bad


def _start(recipe: Recipe) -> Problems:
    bad = Problems()
    names = [phase.name for phase in recipe.phases]
    start = recipe.start
    bad.require(
        start.phase in ("", *names),
        "start.phase",
        f"no phase is named {start.phase!r}; there is {', '.join(names)}",
    )
    bad.require(
        bool(start.phase) == bool(start.checkpoint),
        "start",
        "a phase alone needs a checkpoint to begin from, and the other way round "
        "(train.py --phase NAME --from CHECKPOINT)",
    )
    bad.require(
        not (start.fork and start.checkpoint),
        "start.fork",
        "a run begins from one checkpoint: use fork, or phase and checkpoint",
    )
    bad.require(
        not start.fork or bool(FORK.fullmatch(start.fork)),
        "start.fork",
        f"{start.fork!r}: write RUN@STEP, for instance runs/base@12000",
    )
    bad.require(
        not (recipe.init.weights and (start.fork or start.checkpoint)),
        "init.weights",
        "would be overwritten by the checkpoint that the run begins from",
    )
    return bad


def _evaluation(recipe: Recipe) -> Problems:
    bad = Problems()
    evaluation = recipe.evaluation
    bad.require(evaluation.every_steps > 0, "evaluation.every_steps", "must be positive")
    bad.require(evaluation.rows > 0, "evaluation.rows", "must be positive")
    bad.require(0 < evaluation.mask_rate < 1, "evaluation.mask_rate", "must lie in (0, 1)")
    bad.require(
        all(0 < rate < 1 for rate in evaluation.mask_rates)
        and len({evaluation.mask_rate, *evaluation.mask_rates}) == 1 + len(evaluation.mask_rates),
        "evaluation.mask_rates",
        "must lie in (0, 1), each given once and none mask_rate itself",
    )
    bad.require(
        all(length >= 8 for length in evaluation.sequence_lengths)
        and len(set(evaluation.sequence_lengths)) == len(evaluation.sequence_lengths),
        "evaluation.sequence_lengths",
        "must be at least 8, each given once",
    )
    for name, probe in evaluation.probes.items():
        bad.require(bool(probe.path), f"evaluation.probes.{name}.path", "is missing")
        bad.require(probe.examples >= 8, f"evaluation.probes.{name}.examples", "must be at least 8")
        bad.require(probe.tokens >= 3, f"evaluation.probes.{name}.tokens", "must be at least 3")
    bad.require(evaluation.samples >= 0, "evaluation.samples", "must not be negative")
    return bad


def _logging(recipe: Recipe) -> Problems:
    bad = Problems()
    bad.require(recipe.logging.every_steps > 0, "logging.every_steps", "must be positive")
    alerts = recipe.logging.alerts
    bad.require(
        not alerts.webhook or bool(VARIABLE.fullmatch(alerts.webhook)),
        "logging.alerts.webhook",
        "is no name of an environment variable; put the address, which is a secret, into one",
    )
    unknown = [event for event in alerts.events if event not in ALERTS]
    bad.require(
        not unknown,
        "logging.alerts.events",
        f"{', '.join(unknown)}: there is {', '.join(ALERTS)}",
    )
    return bad


def impossible_card(card: CardConfig) -> list[tuple[str, str]]:
    """Return (key, reason) for what the hub would not take."""
    bad = []
    for name, (pattern, examples) in CARD.items():
        values = getattr(card, name)
        for value in values if isinstance(values, list) else [values]:
            if not pattern.fullmatch(value):
                bad.append((f"card.{name}", f"{value!r}: is not spelled as on the hub: {examples}"))
    return bad


def _faults(recipe: Recipe) -> list[tuple[str, str]]:
    bad = []
    faults = recipe.faults
    for key, text, least in (
        ("stop_after", recipe.stop_after, 0.0),
        ("faults.grace", faults.grace, 1.0),
        ("faults.hang_timeout", faults.hang_timeout, 1.0),
    ):
        try:
            if parse_duration(text) < least:
                bad.append((key, f"{text}: must be at least {least:g} s"))
            if parse_duration(text) > MOST_SECONDS:
                bad.append((key, f"{text}: must be at most {MOST_SECONDS:,} s"))
        except ValueError as error:
            bad.append((key, str(error)))
    spikes = faults.spikes
    for key, value, smallest in (
        ("nonfinite_steps", faults.nonfinite_steps, 1),
        ("spikes.window_steps", spikes.window_steps, 4),
        ("spikes.rollback_steps", spikes.rollback_steps, 1),
        ("spikes.max_rollbacks", spikes.max_rollbacks, 1),
    ):
        if value < smallest:
            bad.append((f"faults.{key}", f"{value}: must be at least {smallest}"))
    if spikes.threshold <= 0:
        bad.append(("faults.spikes.threshold", "must be positive"))
    steps = recipe.profile.steps
    if steps and not (len(steps) == 2 and 0 <= steps[0] < steps[1]):
        bad.append(("profile.steps", f"{steps}: write [FROM, TO], for instance [20, 24]"))
    if any(rank < 0 for rank in recipe.profile.ranks):
        bad.append(("profile.ranks", "ranks are numbered from 0"))
    return bad


def _checkpoints(recipe: Recipe) -> list[tuple[str, str]]:
    checkpoint, bad = recipe.checkpoint, []
    for key in ("every_steps", "keep", "keep_local"):
        if getattr(checkpoint, key) < 1:
            bad.append((f"checkpoint.{key}", "must be positive"))
    try:
        parse_slots(checkpoint.keep_every)
    except ValueError as error:
        bad.append(("checkpoint.keep_every", str(error)))
    for key in ("keep_best", "average_best"):
        if getattr(checkpoint, key) < 0:
            bad.append((f"checkpoint.{key}", "must not be negative"))
        elif getattr(checkpoint, key) and not recipe.evaluation.streams:
            bad.append((f"checkpoint.{key}", "needs evaluation.streams, to tell which are best"))
    return bad
