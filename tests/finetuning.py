"""A tiny model and made-up labelled data that it can learn in seconds, for tests of fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from restomod import save_transformers
from restomod.data.tokenizer import load_tokenizer
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM

FAST = {"lr": 5e-3, "epochs": 3, "batch_size": 16, "weight_decay": 0.0}
"""Training that a tiny, untrained model learns with."""


def save_tiny_model(tokenizer_folder: str, folder: Path, **changes: Any) -> Path:
    """Write an untrained encoder of two layers as a transformers folder."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tokenizer_folder)
    shape = {"layers": 2, "hidden_size": 32, "heads": 2, "intermediate_size": 48}
    config = EncoderConfig(
        **{**shape, "local_window": 16, "max_sequence_length": 64, **changes},
        vocab_size=tokenizer.vocab_size,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        pad_id=tokenizer.pad_id,
    )
    model = MaskedLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    save_transformers(model, folder, tokenizer_folder)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COLOURS, FRUITS = ("red", "green", "blue", "grey"), ("apple", "pear", "plum", "fig")


def sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows with labels of every kind: `label` says whether colours outnumber fruits, `score`
    by how much, `words` and `tags` which is which."""
    generator = np.random.default_rng(seed)
    rows = []
    while len(rows) < count:
        words = generator.choice([*COLOURS, *FRUITS], size=generator.integers(1, 9)).tolist()
        colours = sum(word in COLOURS for word in words)
        if 2 * colours == len(words):
            continue
        label = "colours" if 2 * colours > len(words) else "fruits"
        tags = ["B-COLOUR" if word in COLOURS else "O" for word in words]
        score = (2 * colours - len(words)) / len(words)
        rows.append({"text": " ".join(words), "label": label, "score": score})
        rows[-1] |= {"words": words, "tags": tags}
    return rows


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return anchors of two words and positives that hold the same in other company."""
    generator = np.random.default_rng(seed)
    names = [f"{a}{b}" for a in "bdfgklmn" for b in ("a", "e", "i", "o", "u")]
    rows = []
    for _ in range(count):
        first, second, *others = generator.choice(names, size=6, replace=False).tolist()
        rows.append({"anchor": f"{first} {second}", "positive": f"{second} {others[0]} {first}"})
        rows[-1]["negative"] = f"{others[1]} {others[2]} {others[3]}"
    return rows
