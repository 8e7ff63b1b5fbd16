"""A classifier on our encoder, packed, and its folder for transformers.

Enters: a pretrained model and a packed batch. Leaves: logits of texts or of words, the loss, and a
folder that AutoModelForSequenceClassification or ...TokenClassification loads with the same logits.
It is transformers' ModernBertForSequenceClassification in other words: pooled hidden states, the
pretrained head without its decoder, dropout, a linear layer. `trainer.py` trains it.

Shapes: T tokens in the packed batch, N documents, W words, D hidden, C classes (1: regression).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from restomod.finetune.backbone import hidden_states
from restomod.finetune.examples import Example, pack
from restomod.model.encoder import MaskedLM
from restomod.model.hf import CONFIG, TIED, WEIGHTS, save_transformers, transformers_name
from restomod.model.init import CUTOFF
from restomod.vectors.texts import Pooling, by_length, pool

EVAL_TOKENS = 16_384


class Classifier(nn.Module):
    """Encoder, head, classifier."""

    accepts_loss_kwargs = True  # transformers' Trainer then passes num_items_in_batch

    def __init__(
        self,
        model: MaskedLM,
        names: Sequence[str],
        *,
        words: bool,
        pooling: Pooling,
        dropout: float,
        seed: int,
    ) -> None:
        """`names` are the classes; none: one number is predicted. `words`: labels are words'."""
        super().__init__()
        hidden = model.config.hidden_size
        self.model = model
        self.names = list(names)
        self.words = words
        self.pooling: Pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, len(names) or 1)
        std = hidden**-0.5
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(self.classifier.weight.shape)
        nn.init.trunc_normal_(weight, 0, std, -CUTOFF * std, CUTOFF * std, generator=generator)
        with torch.no_grad():
            self.classifier.weight.copy_(weight)
            self.classifier.bias.zero_()
        if model.head.bias is not None:
            model.head.bias.requires_grad_(False)  # of the decoder, which nothing uses

    def forward(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        labels: Tensor,
        positions: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Return the logits [N, C], or [W, C] of the words at `positions`, and the mean loss;
        with num_items_in_batch, the sum divided by it."""
        hidden = hidden_states(self.model, input_ids, cu_seqlens, max_seqlen).float()
        picked = pool(hidden, cu_seqlens, self.pooling) if positions is None else hidden[positions]
        logits = self.classifier(self.dropout(self.model.head(picked))).float()
        if self.names:
            loss = F.cross_entropy(logits, labels, reduction="sum")
        else:
            loss = F.mse_loss(logits.squeeze(1), labels.float(), reduction="sum")
        count = len(labels) if num_items_in_batch is None else num_items_in_batch
        return {"loss": loss / count, "logits": logits}

    @torch.no_grad()
    def predict(self, examples: Sequence[Example]) -> list[Tensor]:
        """Return each example's logits on the CPU: [1, C], or [words with a token, C]."""
        self.eval()
        device = self.classifier.weight.device
        logits: list[Tensor] = [torch.empty(0)] * len(examples)
        for order in by_length([len(example.ids) for example in examples], EVAL_TOKENS):
            batch = pack([examples[n] for n in order])
            with torch.autocast("cuda", torch.bfloat16, device.type == "cuda"):
                found = self(**{name: _to(value, device) for name, value in batch.items()})
            counts = [_labelled(examples[n]) for n in order]
            for n, part in zip(order, found["logits"].cpu().split(counts), strict=True):
                logits[n] = part
        return logits


def save_classifier(classifier: Classifier, folder: Path, tokenizer_folder: Path) -> None:
    """Write what transformers loads: the masked-language model's folder, with another head."""
    save_transformers(classifier.model, folder, tokenizer_folder)
    weights = load_file(folder / WEIGHTS)
    for name in (transformers_name("head.bias"), TIED):
        weights.pop(name, None)
    for name, tensor in classifier.classifier.state_dict().items():
        weights[f"classifier.{name}"] = tensor.detach().cpu().contiguous()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    fields: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    kind = "Token" if classifier.words else "Sequence"
    names = classifier.names or ["LABEL_0"]
    fields |= {
        "architectures": [f"ModernBertFor{kind}Classification"],
        "id2label": {str(n): name for n, name in enumerate(names)},
        "label2id": {name: n for n, name in enumerate(names)},
        "classifier_pooling": classifier.pooling,
        "classifier_dropout": classifier.dropout.p,
    }
    fields.pop("problem_type", None)
    if not classifier.words:
        fields["problem_type"] = "single_label_classification" if classifier.names else "regression"
    (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _labelled(example: Example) -> int:
    return 1 if example.firsts is None else int((example.firsts >= 0).sum())


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
