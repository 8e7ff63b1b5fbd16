"""The pretrained model that a fine-tuning starts from, and its hidden states in training.

In: a run, a checkpoint, an average, a transformers folder, or the model of another fine-tuning.
Out: the model with dropout as asked for. `tasks.py`, `classifier.py` and `retrieval.py` call this.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from restomod.data.tokenizer import Tokenizer, load_tokenizer
from restomod.errors import UserError
from restomod.model.encoder import Block, MaskedLM
from restomod.model.hf import inexpressible
from restomod.tools.runs import load_model, tokenizer_folder


def load_backbone(path: Path, attention_dropout: float, seed: int) -> MaskedLM:
    """Load the model, with dropout masks of `seed`; raise UserError.

    The head of a classifier is taken, its last layer is not.
    """
    model = load_model(path, backbone=True)
    if foreign := inexpressible(model.config):
        raise UserError(
            f"{path}: transformers' ModernBERT, which a fine-tuned model is saved for, cannot "
            f"express this model's {', '.join(foreign)}"
        )
    model.config.attention_dropout = attention_dropout
    model.config.seed = seed
    for layer in model.encoder.layers:
        assert isinstance(layer, Block)
        layer.attn.dropout = attention_dropout
    return model


def load_own_tokenizer(path: Path) -> tuple[Path, Tokenizer]:
    """Return the folder of a model's tokenizer, and the tokenizer; raise UserError, also if it
    could not be saved with the fine-tuned model."""
    folder = tokenizer_folder(path)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder}: no tokenizer.json to save with the model; make one with transformers' "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return folder, load_tokenizer(folder)


def limit(model: MaskedLM, max_tokens: int) -> int:
    """Return the longest text in tokens, `max_tokens` or the model's own limit; raise UserError."""
    own = model.config.max_sequence_length
    if max_tokens > own:
        raise UserError(f"max_tokens {max_tokens}: the model takes up to {own}")
    return max_tokens or own


def hidden_states(
    model: MaskedLM, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    """Return hidden states [T, D] of a packed batch, in training mode with dropout.

    Its masks are keyed by a number from torch's global generator, which transformers' Trainer
    seeds, stores with its checkpoints, and sets back where a loss computes a batch twice.
    """
    row_ids = None
    if model.training and model.config.attention_dropout > 0:
        row_ids = torch.randint(1 << 62, (1,)).to(input_ids.device)
    return model.encode(input_ids, cu_seqlens, max_seqlen, row_ids)
