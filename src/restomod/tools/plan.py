"""`restomod plan`: what a recipe amounts to, in numbers, without torch and without training."""

from __future__ import annotations

from restomod.config import PhaseConfig, Recipe
from restomod.data.mlm import predicted_slots
from restomod.data.shards import ShardedDataset
from restomod.data.tokenizer import load_tokenizer
from restomod.errors import UserError
from restomod.model.memory import parameters, step_memory
from restomod.optim.schedules import step_factor

PLOT_COLUMNS, PLOT_ROWS = 60, 6


def plan(recipe: Recipe, world_size: int) -> str:
    """Return the plan as text. Data that is not there is named, not an error: a recipe may be
    planned where its data is not."""
    lines = [f"{recipe.run_name}: runs in {recipe.run_folder}, seed {recipe.seed}"]
    vocab_size = 0
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
    for phase in recipe.phases:
        lines += _phase(recipe, phase, world_size)
        if vocab_size:
            lines += [f"  {line}" for line in _memory(recipe, phase, vocab_size)]
    return "\n".join(lines) + "\n"


def _phase(recipe: Recipe, phase: PhaseConfig, world_size: int) -> list[str]:
    micro_batches = phase.batch_rows // world_size // phase.micro_batch_rows
    lines = [
        f"phase {phase.name}: {phase.steps:,} steps of {phase.batch_slots:,} slots "
        f"({phase.batch_rows} rows of {phase.row_tokens:,}), "
        f"{phase.steps * phase.batch_slots:,} in all",
        f"  each of {world_size} ranks: {micro_batches} micro-batches of "
        f"{phase.micro_batch_rows} rows; {recipe.data.lanes} lanes, "
        f"{recipe.data.lanes // world_size} of them each",
        f"  sequence length {phase.sequence_length:,}, mask rate {phase.mask.rate:.0%}, "
        f"peak learning rate {recipe.optimizer.lr:g}",
    ]
    lines += ["  " + line for line in _mixture(recipe, phase)]
    return lines + ["  " + line for line in _plot(phase)]


def _memory(recipe: Recipe, phase: PhaseConfig, vocab_size: int) -> list[str]:
    tokens = phase.micro_batch_rows * phase.row_tokens
    predicted = predicted_slots(tokens, phase)
    lines = []
    for device, name in (("cuda", "GPU, bf16"), ("cpu", "CPU, float32")):
        memory = step_memory(recipe.model, vocab_size, tokens, predicted, recipe.compute, device)
        parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in vars(memory).items())
        lines.append(f"memory of a rank ({name}): {memory.peak / 1e9:.2f} GB ({parts})")
    return lines


def _mixture(recipe: Recipe, phase: PhaseConfig) -> list[str]:
    total = sum(phase.mixture.values())
    slots = phase.steps * phase.batch_slots
    lines = []
    chunk_weight = chunk_tokens = 0.0
    for name, share in sorted(phase.mixture.items()):
        asked = f"stream {name}: {share / total:.1%} of tokens"
        try:
            data = ShardedDataset(name, recipe.data.streams[name], recipe.cache_dir)
        except UserError as error:
            lines.append(f"{asked}; not here ({error})")
            continue
        counted = "" if data.attributes.exact else "about "
        epochs = share / total * slots / data.attributes.tokens
        lines.append(
            f"{asked}; {data.documents:,} documents, {counted}{data.attributes.tokens:,} tokens, "
            f"{epochs:.2f} epochs"
        )
        mean = min(data.mean_tokens, phase.sequence_length)
        chunk_weight += share / mean
        chunk_tokens += share
    if chunk_weight and phase.row_tokens < 27 * chunk_tokens / chunk_weight:
        lines.append(
            f"warning: a row of {phase.row_tokens:,} holds fewer than 27 mean chunks of "
            f"{chunk_tokens / chunk_weight:.0f} tokens: packing may stay below 99.9 %"
        )
    return lines


def _plot(phase: PhaseConfig) -> list[str]:
    """Draw the learning rate over the phase, as a share of its peak."""
    columns = min(PLOT_COLUMNS, phase.steps)
    values = [step_factor(int(n * phase.steps / columns), phase) for n in range(columns)]
    lines = ["learning rate over the phase:"]
    for row in range(PLOT_ROWS, 0, -1):
        level = (row - 0.5) / PLOT_ROWS
        lines.append("|" + "".join("#" if value >= level else " " for value in values).rstrip())
    return [*lines, "+" + "-" * columns]
