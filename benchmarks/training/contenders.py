"""Who takes a training step: our model, transformers', torch's; on the same documents and, but for
torch's, with the same weights."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ModernBertForMaskedLM

from benchmarks.training.documents import KINDS, PAD, Lengths, padded, rows_of, words
from benchmarks.training.measure import settle
from restomod.model.compile import compile_model
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.hf import save_transformers
from restomod.model.init import initialize

NAMES = {
    "ours": "restomod, eager",
    "compiled": "restomod, compiled",
    "padded": "transformers, padded",
    "sparse": "transformers, sparse_prediction",
    "sorted": "transformers, sorted by length",
    "torch": "nn.TransformerEncoder, padded",
}
OURS = ("ours", "compiled")
Forward = Callable[[Lengths, int, int], Tensor]
"""From the lengths of documents, a seed for their words, and the length that they are padded to by
those who pad, to the loss."""


class Contender(NamedTuple):
    """Somebody's way to train."""

    model: nn.Module
    forward: Forward
    batches: list[Lengths]
    device: torch.device
    parts: int = 1
    """Into so many a batch is cut once padded, and gradients are summed."""

    def step(self, n: int) -> None:
        """Compute the gradients of batch n."""
        batch = self.batches[n]
        size = -(-len(batch) // self.parts)
        for start in range(0, len(batch), size):
            self.loss(batch[start : start + size], n, max(batch)).backward()
        self.model.zero_grad()
        settle(self.device)

    def loss(self, lengths: Lengths, seed: int, longest: int) -> Tensor:
        """Return the loss on documents of such lengths, in the precision of the device."""
        half = self.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if half else contextlib.nullcontext():
            return self.forward(lengths, seed, longest)


def ours(model: MaskedLM, most: int, device: torch.device) -> Forward:
    """Return the loss of our model on at most so many packed documents."""

    def forward(lengths: Lengths, seed: int, longest: int) -> Tensor:
        ids, labels = words(lengths, model.config.vocab_size, seed, device)
        positions = (labels != -100).nonzero().squeeze(1)
        bounds = [0, *accumulate(lengths)]
        bounds += [bounds[-1]] * (most - len(lengths))
        batch: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": torch.cat([torch.arange(x).int() for x in lengths]).to(device),
            "cu_seqlens": torch.tensor(bounds, dtype=torch.int32, device=device),
            "max_seqlen": max(longest for _, longest in KINDS.values()),
            "masked_positions": positions,
            "labels": labels[positions],
            "row_ids": torch.tensor([seed], device=device),
        }
        sums = model(batch)
        loss: Tensor = sums.objective / sums.predictions
        return loss

    return forward


def theirs(model: nn.Module, vocab_size: int, device: torch.device) -> Forward:
    """Return the loss of transformers' model on padded documents."""

    def forward(lengths: Lengths, seed: int, longest: int) -> Tensor:
        ids, labels = padded(lengths, vocab_size, seed, longest, device)
        loss: Tensor = model(input_ids=ids, attention_mask=(ids != PAD).long(), labels=labels).loss
        return loss

    return forward


class Plain(nn.Module):
    """torch's encoder, with logits at every position."""

    def __init__(self, config: EncoderConfig, device: torch.device) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            config.hidden_size,
            config.heads,
            3 * config.intermediate_size // 2,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.vocab_size, self.device = config.vocab_size, device
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.decoder.weight = self.embedding.weight
        self.to(device)

    def forward(self, lengths: Lengths, seed: int, longest: int) -> Tensor:
        """Return the loss on padded documents."""
        ids, labels = padded(lengths, self.vocab_size, seed, longest, self.device)
        hidden = self.layers(self.embedding(ids), src_key_padding_mask=ids == PAD)
        return F.cross_entropy(self.decoder(hidden).flatten(0, 1), labels.flatten())


def contenders_of(
    names: list[str],
    config: EncoderConfig,
    batches: list[Lengths],
    parts: int,
    device: torch.device,
) -> dict[str, Contender]:
    """Return those named, the padding ones cutting their batches into so many parts; ours and
    transformers' with the same weights."""
    model = MaskedLM(config).train()
    initialize(model, seed=0)
    model.to(device)
    unpads = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    made: dict[str, Contender] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_transformers(model, folder)
        for name in names:
            if name == "ours":
                forward = ours(model, len(batches[0]), device)
                made[name] = Contender(model, forward, batches, device)
            elif name == "compiled":
                twin = MaskedLM(config).to(device).train()
                twin.load_state_dict(model.state_dict())
                compile_model(twin, device.type, Path(tempfile.gettempdir()))
                rows = rows_of(batches)
                forward = ours(twin, max(map(len, rows)), device)
                made[name] = Contender(twin, forward, rows, device)
            elif name == "torch":
                plain = Plain(config, device)
                made[name] = Contender(plain, plain, batches, device, parts)
            else:
                peer = ModernBertForMaskedLM.from_pretrained(
                    folder,
                    sparse_prediction=name == "sparse",
                    reference_compile=False,
                    attn_implementation="flash_attention_2" if unpads else "sdpa",
                )
                peer.to(device).train()
                made[name] = Contender(
                    peer,
                    theirs(peer, config.vocab_size, device),
                    by_length(batches) if name == "sorted" else batches,
                    device,
                    parts,
                )
    return made


def by_length(batches: list[Lengths]) -> list[Lengths]:
    """Return the first batch, and the documents of the others sorted before they are cut."""
    size, lengths = len(batches[0]), sorted(chain(*batches[1:]))
    return [batches[0], *(lengths[n : n + size] for n in range(0, len(lengths), size))]


def check_losses(contenders: dict[str, Contender]) -> None:
    """Raise RuntimeError unless all with our weights have the same loss on the first batch."""

    def loss(name: str, lengths: Lengths) -> float:
        # What is compiled is compiled for gradients; the others' graphs may be large.
        with torch.set_grad_enabled(name == "compiled"):
            return float(contenders[name].loss(lengths, 0, max(lengths)).detach())

    others = contenders.keys() - {"torch", "compiled"}
    losses = {name: loss(name, contenders[name].batches[0]) for name in others}
    if {"compiled", "ours"} <= contenders.keys():  # compiled code is for rows of one length
        row = contenders["compiled"].batches[0]
        losses["compiled"] = losses["ours"] + loss("compiled", row) - loss("ours", row)
    device = next(iter(contenders.values())).device
    bound = 1e-4 if device.type == "cpu" else 0.05  # bf16 rounds in other places
    if losses and max(losses.values()) - min(losses.values()) > bound:
        raise RuntimeError(f"not the same model: losses {losses}")
