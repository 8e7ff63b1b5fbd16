"""The model that a run starts from: drawn anew, or with another model's weights.

Enters: a recipe, a phase, the opened data. Leaves: a model on the CPU. Called by `builder.py`, and
by `eval/` for the frequencies of tokens.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from restomod.config import ModelConfig, PhaseConfig, Recipe
from restomod.data.mixture import token_shares
from restomod.data.sources import Sources
from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.init import initialize, set_decoder_bias
from restomod.tools.runs import load_model
from restomod.units import parse_slots


def build_model(recipe: Recipe, phase: PhaseConfig, sources: Sources) -> MaskedLM:
    """Return the recipe's model with its initial weights, on the CPU."""
    config = encoder_config(recipe, phase, sources.tokenizer)
    source = load_model(recipe.init.weights) if recipe.init.weights else None
    if source:
        if source.config.vocab_size >= sources.tokenizer.size:
            config.vocab_size = source.config.vocab_size  # which may be padded otherwise than ours
        _check_shape(source.config, config, recipe.init.weights)
    model = MaskedLM(config)
    if source:
        model.load_state_dict(source.state_dict())
    else:
        initialize(model, recipe.seed)
    if recipe.init.log_unigram_bias:
        shares = unigram([phase], sources, config.vocab_size)
        set_decoder_bias(model, torch.from_numpy(np.log(shares)).float())
    return model


def _check_shape(theirs: EncoderConfig, config: EncoderConfig, path: str) -> None:
    """Raise UserError naming what differs between the model of init.weights and the recipe's."""
    shape = {field.name for field in dataclasses.fields(ModelConfig)} - {"attention_dropout"}
    differing = [
        f"{name}: {getattr(theirs, name)} there, {getattr(config, name)} here"
        for name in [*sorted(shape), "vocab_size"]
        if getattr(theirs, name) != getattr(config, name)
    ]
    if differing:
        raise UserError(
            f"init.weights: {path} is another model than the recipe's:\n  "
            + "\n  ".join(differing)
            + "\n`restomod tile` makes larger models from smaller ones"
        )


def encoder_config(recipe: Recipe, phase: PhaseConfig, tokenizer: Tokenizer) -> EncoderConfig:
    """Return the encoder's shape: the recipe's, with what the tokenizer and the phase add."""
    return EncoderConfig(
        **dataclasses.asdict(recipe.model),
        vocab_size=tokenizer.vocab_size,
        rope_base_global=phase.rope_base_global,
        rope_base_local=phase.rope_base_local,
        max_sequence_length=phase.sequence_length,
        pad_id=tokenizer.pad_id,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        seed=recipe.seed,
        causal=phase.objective == "clm",
    )


def unigram(phases: Sequence[PhaseConfig], sources: Sources, vocab_size: int) -> np.ndarray:
    """Return the share of each id among the tokens of some phases, [vocab_size], smoothed by half a
    count so that none is zero."""
    drawn: dict[str, float] = defaultdict(float)
    for phase in phases:
        for name, share in token_shares(phase, sources.streams).items():
            drawn[name] += share * parse_slots(phase.slots)
    shares = np.zeros(vocab_size)
    size = 0
    for name, slots in drawn.items():
        counts = sources.streams[name].token_counts(len(shares))
        size += counts.sum()
        shares += slots / sum(drawn.values()) * counts / counts.sum()
    return (shares * size + 0.5) / (size + 0.5 * len(shares))
