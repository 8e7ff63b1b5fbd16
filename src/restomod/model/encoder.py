"""The encoder of ModernBERT (arXiv 2412.13663) on packed documents, and its masked-language model.

Enters: token ids of whole documents, one after the other, and where each begins. Leaves: hidden
states, logits, or the sums that the training loss is made of. The trainer calls `MaskedLM.forward`;
everything else calls `encode`, `logits` and `mlm_loss`.

Shapes: T tokens in the packed batch, k rows, N documents, D hidden, H heads, K head dim,
V vocabulary, M masked positions.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from restomod.config import ComputeConfig
from restomod.model.attention import AttentionPlan, attend, plan_attention
from restomod.model.config import EncoderConfig
from restomod.model.dropout import dropout, layer_keys, token_keys
from restomod.model.head import Head
from restomod.model.loss import IGNORED, LossSums
from restomod.model.mlp import GatedMLP
from restomod.model.norm import Norm

DropoutKeys = tuple[Tensor, Tensor]
"""A batch's token keys [T], and a layer's key."""


class Origin(NamedTuple):
    """What a model's source says beyond our configuration and parameters, for writing it back."""

    fields: dict[str, Any]
    """Of transformers' config.json."""
    dtypes: dict[str, torch.dtype]
    """Of the stored weights, by our names."""


class Embedding(nn.Embedding):
    """Rows of the embedding matrix, normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config.vocab_size, config.hidden_size)
        self.norm = Norm(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[T] -> [T, D]."""
        return self.norm(super().forward(input_ids))


class Attention(nn.Module):
    """Self-attention in the whole document (global layers) or in a window of it."""

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.is_global = layer % config.global_every == 0
        self.dropout = config.attention_dropout
        bias = config.attention_bias
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=bias)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)

    def forward(self, x: Tensor, plan: AttentionPlan, keys: DropoutKeys | None) -> Tensor:
        """[T, D] -> [T, D]."""
        qkv = self.Wqkv(x).view(x.shape[0], 3, self.heads, x.shape[1] // self.heads)
        out = self.Wo(attend(qkv, plan, self.is_global).flatten(1))
        return out if keys is None else dropout(out, *keys, self.dropout)


class Block(nn.Module):
    """h = x + attention(norm(x)); out = h + mlp(norm(h)); the embedding's norm serves block 0."""

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = nn.Identity() if layer == 0 else Norm(config)
        self.attn = Attention(config, layer)
        self.mlp_norm = Norm(config)
        self.mlp = GatedMLP(config)
        self.keeps: Callable[[], Any] | None = None
        """What the backward pass finds of this block's activations; None is all of them."""

    def forward(self, x: Tensor, plan: AttentionPlan, keys: DropoutKeys | None) -> Tensor:
        """[T, D] -> [T, D]."""
        if self.keeps is None or not torch.is_grad_enabled():
            return self._block(x, plan, keys)
        return checkpoint(
            self._block,
            x,
            plan,
            keys,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=self.keeps,
        )

    def _block(self, x: Tensor, plan: AttentionPlan, keys: DropoutKeys | None) -> Tensor:
        h, normed = self.mlp_norm.add(x, self.attn(self.attn_norm(x), plan, keys))
        return h + self.mlp(normed)


class Encoder(nn.Module):
    """Embedding, blocks, norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.kernel = "auto"
        """Attention kernel that the recipe asks for."""
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = Norm(config)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        row_ids: Tensor | None = None,
    ) -> Tensor:
        """Encode input_ids [T] -> [T, D], before the final norm.

        Dropout needs training mode and row_ids [k].
        """
        config, device = self.config, input_ids.device
        plan = plan_attention(
            config, position_ids, cu_seqlens, max_seqlen, self._dtype(device), self.kernel
        )
        drops = self.training and row_ids is not None and config.attention_dropout > 0
        x = self.embedding(input_ids)
        if not drops:
            for layer in self.layers:
                x = layer(x, plan, None)
            return x
        assert row_ids is not None
        tokens = token_keys(config.seed, row_ids, input_ids.shape[0])
        keys = layer_keys(config.layers, config.hidden_size, device)
        for layer, key in zip(self.layers, keys.unbind(), strict=True):
            x = layer(x, plan, (tokens, key))
        return x

    def _dtype(self, device: torch.device) -> torch.dtype:
        own = self.embedding.weight.dtype
        if torch.is_autocast_enabled(device.type) and own != torch.float64:
            return torch.get_autocast_dtype(device.type)
        return own


class MaskedLM(nn.Module):
    """Encoder and masked-language-model head, with the embedding as decoder."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head = Head(config)
        self.logits_mb = ComputeConfig().logits_mb
        self.z_loss = 0.0
        self.origin: Origin | None = None

    def compute_as(self, compute: ComputeConfig) -> None:
        """Take over how to compute: attention kernel, recomputation, size of the logits' pieces."""
        self.encoder.kernel = compute.attention
        self.logits_mb = compute.logits_mb
        for n, layer in enumerate(self.encoder.layers):
            recomputed = compute.recompute_every and n % compute.recompute_every == 0
            assert isinstance(layer, Block)
            layer.keeps = _keeping(compute.recompute_keep) if recomputed else None

    def enter_phase(
        self,
        rope_base_global: float,
        rope_base_local: float,
        max_sequence_length: int,
        causal: bool,
        z_loss: float,
    ) -> None:
        """Take over what a phase of training sets; every batch from here on is computed so."""
        self.config.rope_base_global = rope_base_global
        self.config.rope_base_local = rope_base_local
        self.config.max_sequence_length = max_sequence_length
        self.config.causal = causal
        self.z_loss = z_loss

    def forward(self, batch: Mapping[str, Any]) -> LossSums:
        """Return the sums of a packed batch's loss.

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
        if labels.device.type == "cpu":
            # Shapes need not be static here: spare the head its padding.
            kept = labels != IGNORED
            positions, labels = positions[kept], labels[kept]
        return self._sums(hidden, positions, labels)

    def encode(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int | None = None,
        row_ids: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states [T, D] of input_ids [T]; in training mode, row_ids [k] ask for the
        dropout of k rows of T/k tokens.

        Document n is cu_seqlens[n] to cu_seqlens[n + 1]; what follows the last one is padding,
        which no document sees. On CUDA, give max_seqlen to spare a host sync. Raises ValueError for
        bounds that do not rise from 0 to at most T (on CUDA only without max_seqlen).
        """
        return self.encoder.final_norm(self._stream(input_ids, cu_seqlens, max_seqlen, row_ids))

    def logits(
        self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None
    ) -> Tensor:
        """Return scores [T, V] of every position."""
        hidden = self.encode(input_ids, cu_seqlens, max_seqlen)
        return self.head.logits(hidden, self.encoder.embedding.weight)

    def mlm_loss(
        self, input_ids: Tensor, labels: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None
    ) -> Tensor:
        """Return the mean loss over labels [T] != -100; zero if there are none.

        Raises ValueError for another number of labels.
        """
        if labels.shape != input_ids.shape:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}, input_ids {tuple(input_ids.shape)}: one "
                "label for each token is wanted, -100 where there is nothing to predict"
            )
        kept = (labels != IGNORED).nonzero().squeeze(1)
        sums = self._sums(self._stream(input_ids, cu_seqlens, max_seqlen), kept, labels[kept])
        return sums.objective / sums.predictions.clamp(min=1)

    def _stream(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int | None,
        row_ids: Tensor | None = None,
    ) -> Tensor:
        tokens = input_ids.shape[0]
        cu_seqlens = cu_seqlens.to(torch.int32)
        if max_seqlen is None or cu_seqlens.device.type == "cpu":
            bounds = cu_seqlens.tolist()
            if not bounds or bounds[0] != 0 or bounds != sorted(bounds) or bounds[-1] > tokens:
                raise ValueError(
                    f"cu_seqlens must rise from 0 to at most {tokens}, the number of tokens; it "
                    f"begins with {bounds[:3]} and ends with {bounds[-3:]}"
                )
            max_seqlen = max((b - a for a, b in itertools.pairwise(bounds)), default=0)
        max_seqlen = max(max_seqlen, 1)
        # Padding becomes documents of its own, none longer than the longest.
        ends = cu_seqlens[-1] + max_seqlen * torch.arange(
            1, -(-tokens // max_seqlen) + 1, dtype=torch.int32, device=cu_seqlens.device
        )
        cu_seqlens = torch.cat([cu_seqlens, ends.clamp(max=tokens)])
        position_ids = _position_ids(cu_seqlens, tokens)
        return self.encoder(input_ids, position_ids, cu_seqlens, max_seqlen, row_ids)

    def _sums(self, stream: Tensor, positions: Tensor, labels: Tensor) -> LossSums:
        hidden = self.encoder.final_norm(stream[positions])  # only where something is predicted
        return self.head.sums(
            hidden, self.encoder.embedding.weight, labels, self.z_loss, self.logits_mb
        )


def _keeping(what: str) -> Callable[[], Any]:
    """Return the contexts of `checkpoint` for what a recomputed layer keeps."""
    aten = torch.ops.aten
    kept: list[Any] = []
    if what in ("attention", "products"):
        kept.append(torch.ops.restomod.attention.default)
    if what == "products":
        kept += [aten.mm.default, aten.addmm.default]
    return functools.partial(create_selective_checkpoint_contexts, kept)


def _position_ids(cu_seqlens: Tensor, tokens: int) -> Tensor:
    slots = torch.arange(tokens, dtype=torch.int32, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, slots, right=True) - 1
    return slots - cu_seqlens[document]
