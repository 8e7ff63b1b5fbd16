"""The encoder of ModernBERT (arXiv 2412.13663) on packed documents, and its masked-language model.

Enters: token ids of whole documents, one after the other, and where each begins. Leaves: hidden
states, logits, or the sums that the training loss is made of. The trainer calls `MaskedLM.forward`;
everything else calls `encode`, `logits` and `mlm_loss`.

Shapes: T tokens in the packed batch, k rows, N documents, D hidden, H heads, K head dim,
V vocabulary, M masked positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from restomod.config import ModelConfig
from restomod.model.attention import Documents, attention
from restomod.model.dropout import dropout, token_keys
from restomod.model.head import IGNORED, Head, mlm_sums
from restomod.model.mlp import GatedMLP
from restomod.model.rope import rope_tables


@dataclass
class EncoderConfig(ModelConfig):
    """Shape of the encoder, and what the tokenizer and the phase of training add to it."""

    vocab_size: int = 50_368
    """Rows of the embedding; at least the tokenizer's size."""
    rope_base_global: float = 160_000.0
    """RoPE base of the global layers; a phase may change it on a living model."""
    max_sequence_length: int = 8192
    """Longest document seen in training, in tokens; exported, not enforced."""
    pad_id: int = 50_283
    """Id of [PAD]; exported."""
    cls_id: int = 50_281
    """Id of [CLS]; exported."""
    sep_id: int = 50_282
    """Id of [SEP]; exported."""
    seed: int = 0
    """Seed of the dropout masks."""


@dataclass(frozen=True)
class _Batch:
    """What all layers share of a batch."""

    documents: Documents
    rope_global: tuple[Tensor, Tensor]
    rope_local: tuple[Tensor, Tensor]
    dropout_keys: Tensor | None


class Attention(nn.Module):
    """Self-attention with RoPE, in the whole document or in a window of it."""

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = config.heads
        self.is_global = layer % config.global_every == 0
        self.window = None if self.is_global else config.local_window // 2
        self.dropout = config.attention_dropout
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, batch: _Batch) -> Tensor:
        """[T, D] -> [T, D]."""
        cos, sin = batch.rope_global if self.is_global else batch.rope_local
        qkv = self.Wqkv(x).view(x.shape[0], 3, self.heads, -1)
        mixed = attention(qkv, cos, sin, batch.documents, self.window)
        out = self.Wo(mixed.flatten(1))
        if batch.dropout_keys is None or self.dropout == 0:
            return out
        return dropout(out, batch.dropout_keys, self.layer, self.dropout)


class Block(nn.Module):
    """h = x + attention(norm(x)); out = h + mlp(norm(h)); the embedding's norm serves block 0."""

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = nn.Identity() if layer == 0 else _norm(config)
        self.attn = Attention(config, layer)
        self.mlp_norm = _norm(config)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, batch: _Batch) -> Tensor:
        """[T, D] -> [T, D]."""
        h = x + self.attn(self.attn_norm(x), batch)
        return h + self.mlp(self.mlp_norm(h))


class Encoder(nn.Module):
    """Embedding, norm, blocks, norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embedding_norm = _norm(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = _norm(config)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        row_ids: Tensor | None = None,
    ) -> Tensor:
        """Encode input_ids [T] -> [T, D]; dropout needs training mode and row_ids [k]."""
        config = self.config
        head_size = config.hidden_size // config.heads
        tokens = input_ids.shape[0]
        dtype = self.embedding_norm.weight.dtype
        batch = _Batch(
            Documents(cu_seqlens, max_seqlen, tokens),
            rope_tables(position_ids, head_size, config.rope_base_global, dtype),
            rope_tables(position_ids, head_size, config.rope_base_local, dtype),
            token_keys(config.seed, row_ids, tokens)
            if self.training and row_ids is not None
            else None,
        )
        x = self.embedding_norm(self.embedding(input_ids))
        for layer in self.layers:
            x = layer(x, batch)
        return self.final_norm(x)


class MaskedLM(nn.Module):
    """Encoder and masked-language-model head, with the embedding as decoder."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head = Head(config.hidden_size, config.vocab_size, config.norm_eps)

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss sum (float32), right predictions and labels (both counted) of a packed batch.

        The batch holds input_ids [T] int64, position_ids [T], cu_seqlens [N+1] int32 (its unused
        end repeats T), max_seqlen, masked_positions [M] int64 (padded with 0), labels [M] int64
        (padded with -100), and row_ids [k] int64 of its k rows of T/k tokens. Nothing syncs with
        a CUDA device.
        """
        hidden = self.encoder(
            batch["input_ids"],
            batch["position_ids"],
            batch["cu_seqlens"],
            batch["max_seqlen"],
            batch["row_ids"],
        )
        positions, labels = batch["masked_positions"], batch["labels"]
        if (
            labels.device.type == "cpu"
        ):  # shapes need not be static here: spare the head its padding
            kept = labels != IGNORED
            positions, labels = positions[kept], labels[kept]
        return mlm_sums(self._head(hidden[positions]), labels)

    def encode(
        self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None
    ) -> Tensor:
        """Return hidden states [T, D] of input_ids [T], without dropout; bounds cu_seqlens [N+1].

        On CUDA, give max_seqlen to spare a host sync.
        """
        cu_seqlens = cu_seqlens.to(torch.int32)
        if max_seqlen is None:
            max_seqlen = int(cu_seqlens.diff().max())
        positions = _position_ids(cu_seqlens, input_ids.shape[0])
        return self.encoder(input_ids, positions, cu_seqlens, max_seqlen)

    def logits(
        self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None
    ) -> Tensor:
        """Return scores [T, V] of every position."""
        return self._head(self.encode(input_ids, cu_seqlens, max_seqlen))

    def mlm_loss(
        self, input_ids: Tensor, labels: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None
    ) -> Tensor:
        """Return the mean loss over labels [T] != -100; zero if there are none."""
        hidden = self.encode(input_ids, cu_seqlens, max_seqlen)
        kept = labels != IGNORED
        loss, _, count = mlm_sums(self._head(hidden[kept]), labels[kept])
        return loss / count.clamp(min=1)

    def _head(self, hidden: Tensor) -> Tensor:
        return self.head(hidden, self.encoder.embedding.weight)


def _norm(config: EncoderConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)


def _position_ids(cu_seqlens: Tensor, tokens: int) -> Tensor:
    slots = torch.arange(tokens, dtype=torch.int32, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, slots, right=True) - 1
    return slots - cu_seqlens[document]
