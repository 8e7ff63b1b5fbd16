"""`restomod plan`: what a recipe amounts to, in numbers, without torch and without training."""

from __future__ import annotations

import json
import math

from restomod.config import PhaseConfig, Recipe
from restomod.data.mixture import exhausted, token_shares
from restomod.data.rows import SpecialTokens
from restomod.data.shards import ShardedDataset
from restomod.data.tokenizer import Tokenizer, load_tokenizer
from restomod.data.working_set import working_set
from restomod.errors import UserError
from restomod.model.memory import parameters, phase_memory
from restomod.optim.schedules import decay_of_weights, peak_lr
from restomod.timeline import Timeline
from restomod.tools.schedule_plots import schedule_plots
from restomod.units import parse_duration, parse_slots

REPEATS = 4
"""Epochs of the same data that are worth about as much as new data (arXiv 2305.16264)."""


def plan(recipe: Recipe, world_size: int, node_ranks: int | None = None) -> str:
    """Return the plan for `world_size` ranks, `node_ranks` of them on a node (None: all), as text.
    Data that is not there is named, not an error: a recipe may be
    planned where its data is not. Raises UserError where the data is there and does not last, or
    needs more open shards or cache than the recipe allows."""
    lines = [f"{recipe.run_name}: runs in {recipe.run_folder}, seed {recipe.seed}"]
    vocab_size = 0
    tokenizer = None
    try:
        tokenizer = load_tokenizer(recipe.tokenizer)
        vocab_size = tokenizer.vocab_size
        lines.append(f"tokenizer: {recipe.tokenizer}, vocabulary {vocab_size:,}")
    except UserError as error:
        lines.append(f"tokenizer: not here ({error})")
    body, embedding = parameters(recipe.model, vocab_size)
    model = recipe.model
    lines.append(
        f"model: {model.layers} layers of {model.hidden_size}, {model.heads} heads, "
        + (
            f"{body + embedding:,} parameters, {body:,} of them"
            if vocab_size
            else f"{body:,} parameters"
        )
        + " without the embedding"
    )
    streams, missing = _open_streams(recipe, tokenizer)
    if not missing:
        lines += _data(recipe, streams, world_size)
    timeline = Timeline(recipe.trained_phases)
    for phase in recipe.trained_phases:
        lines += _phase(recipe, phase, world_size)
        lines += [f"  {line}" for line in _mixture(recipe, phase, streams, missing)]
        if vocab_size:
            shards = recipe.parallel.shards(world_size, node_ranks or world_size)
            lines += [f"  {line}" for line in _memory(recipe, phase, vocab_size, shards)]
    lines += _grace(recipe)
    lines += ["schedules over the run's slots:"]
    lines += [f"  {line}" for line in schedule_plots(timeline, recipe.optimizer)]
    return "\n".join(lines) + "\n"


def _grace(recipe: Recipe) -> list[str]:
    """Compare the time that the cluster leaves after a signal with what saving took in this run."""
    log = recipe.run_folder / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []

    def logged(event: str, name: str, among: list[str]) -> list[float]:
        return [
            json.loads(line)[name]
            for line in among
            if f'"event": "{event}"' in line and line.endswith("}")
        ]

    took = logged("checkpoint", "seconds", lines)
    grace_s = parse_duration(recipe.faults.grace)
    if not took:
        return [f"stopping: {grace_s:g} s are left after a signal; no save was measured yet"]
    needed = max(took) + max(logged("train", "step_s", lines[-200:]), default=0.0)
    text = f"a step and a save took up to {needed:.1f} s in this run"
    if needed > grace_s / 2:
        return [
            f"warning: {text}, and {grace_s:g} s are left after a signal (faults.grace): have the "
            "cluster signal earlier, or use more ranks to a checkpoint, or a faster disk"
        ]
    return [f"stopping: {grace_s:g} s are left after a signal; {text}"]


def _open_streams(
    recipe: Recipe, tokenizer: Tokenizer | None
) -> tuple[dict[str, ShardedDataset], dict[str, str]]:
    """Return the streams that are here, and why the others are not."""
    streams: dict[str, ShardedDataset] = {}
    missing: dict[str, str] = {}
    for name in sorted({name for phase in recipe.phases for name in phase.mixture}):
        config = recipe.data.streams[name]
        try:
            streams[name] = ShardedDataset(name, config, recipe.cache_dir, tokenizer, recipe.data)
        except UserError as error:
            missing[name] = str(error)
    return streams, missing


def _data(recipe: Recipe, streams: dict[str, ShardedDataset], world_size: int) -> list[str]:
    data = recipe.data
    needed = working_set(recipe, streams, world_size)
    problems = exhausted(recipe.trained_phases, streams) + needed.problems(data)
    if problems:
        raise UserError("\n".join(problems))
    cached = [dataset for dataset in streams.values() if dataset.cached]
    lines = [
        f"data: each rank opens up to {needed.open_shards} shards before its first rows, "
        f"{data.shards_open_per_rank} are allowed"
    ]
    if cached:
        lines.append(
            f"cache: shards in use take up to {needed.cached_bytes / 1e9:.3g} GB of a node, "
            f"all data {sum(int(d.index.raw_bytes.sum()) for d in cached) / 1e9:.3g} GB, "
            f"{data.cache_limit_gb:g} GB are allowed"
        )
    return lines


def _phase(recipe: Recipe, phase: PhaseConfig, world_size: int) -> list[str]:
    micro_batches = phase.batch_rows // world_size // phase.micro_batch_rows
    lines = [
        f"phase {phase.name}: {phase.steps:,} steps of {phase.batch_slots:,} slots "
        f"({phase.batch_rows} rows of {phase.row_tokens:,}), {phase.total_slots:,} in all",
        *_batch_warmup(recipe, phase),
        f"  each of {world_size} ranks: {micro_batches} micro-batches of "
        f"{phase.micro_batch_rows} rows; {recipe.data.lanes} lanes, "
        f"{recipe.data.lanes // world_size} of them each",
        f"  sequence length {phase.sequence_length:,}, mask rate {_rates(phase)}, "
        f"peak learning rate {peak_lr(phase, recipe.optimizer):g}, "
        f"weight decay {decay_of_weights(phase, recipe.optimizer):g}, "
        f"RoPE base {phase.rope_base_global:g} global, {phase.rope_base_local:g} local",
    ]
    return lines


def _batch_warmup(recipe: Recipe, phase: PhaseConfig) -> list[str]:
    """Say what batch warm-up was asked for and what comes of it, and for which ranks."""
    batches = phase.batches
    shared = math.gcd(*batches.distinct) // phase.micro_batch_rows
    ranks = [n for n in range(1, shared + 1) if shared % n == 0 and recipe.data.lanes % n == 0]
    lines = []
    if batches.warmup:
        sizes = ", ".join(map(str, batches.distinct[:-1]))
        asked = parse_slots(phase.batch_warmup.slots)
        lines += [
            f"  batch warm-up: {sizes} rows for {batches.steps_each:,} steps each, "
            f"{batches.warmup_rows * phase.row_tokens:,} slots ({asked:,} were asked)"
        ]
    row = phase.micro_batch_rows
    return [
        *lines,
        f"  runs on {', '.join(map(str, ranks))} ranks; the smallest batch of n ranks is "
        f"n x {row} row{'s' if row > 1 else ''}, {row * phase.row_tokens:,} slots for each rank",
    ]


def _memory(recipe: Recipe, phase: PhaseConfig, vocab_size: int, shards: int) -> list[str]:
    lines = []
    for device, name in (("cuda", "GPU, bf16"), ("cpu", "CPU, float32")):
        memory = phase_memory(recipe, phase, vocab_size, device, shards)
        parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in vars(memory).items())
        lines.append(f"memory of a rank ({name}): {memory.peak / 1e9:.2f} GB ({parts})")
    if shards > 1:
        lines.append(f"of weights, gradients and moments, a rank holds 1/{shards}")
    return lines


def _rates(phase: PhaseConfig) -> str:
    mask = phase.mask
    towards = "" if mask.between == "steps" else "linearly "
    later = [f", {towards}{step.rate:.0%} at {step.at}" for step in mask.later]
    return f"{mask.rate:.0%}" + "".join(later)


def _mixture(
    recipe: Recipe,
    phase: PhaseConfig,
    streams: dict[str, ShardedDataset],
    missing: dict[str, str],
) -> list[str]:
    known = not missing or phase.mixture_by == "proportion"
    total = sum(phase.mixture.values())
    shares = {name: share / total for name, share in phase.mixture.items()}
    if not missing:
        shares = token_shares(phase, streams)
    lines = []
    chunk_weight = chunk_tokens = 0.0
    reserved = SpecialTokens(recipe.data.special_tokens).reserved
    for name, share in sorted(shares.items()):
        asked = f"stream {name}: {share:.1%} of tokens" if known else f"stream {name}"
        if name in missing:
            lines.append(f"{asked}; not here ({missing[name]})")
            continue
        data = streams[name]
        tokens = data.attributes.tokens
        counted = "" if data.attributes.exact else "about "
        times = share * phase.total_slots / tokens if known else 0.0
        lines.append(
            f"{asked}; {data.documents:,} documents, {counted}{tokens:,} tokens (from "
            f"{data.attributes.source}), {times:.2f} epochs of at most {data.max_epochs:g}"
        )
        if times > REPEATS:
            lines.append(f"warning: more than {REPEATS} epochs of {name} teach little more")
        if share:
            mean = min(data.mean_tokens + reserved, phase.sequence_length)
            chunk_weight += share / mean
            chunk_tokens += share
    if chunk_weight:
        mean, least = chunk_tokens / chunk_weight, recipe.data.tokens_per_document_min
        if phase.row_tokens < 27 * mean:
            lines.append(
                f"warning: a row of {phase.row_tokens:,} holds fewer than 27 mean chunks of "
                f"{mean:.0f} tokens: packing may stay below 99.9 %"
            )
        if mean < least:
            lines.append(
                f"warning: the mean chunk has {mean:.1f} tokens, but a row is closed at one "
                f"document for every {least} slots, {mean / least:.0%} full; lower "
                "data.tokens_per_document_min"
            )
    return lines
