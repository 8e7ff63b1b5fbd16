"""What all layers of a forward pass share: bounds, RoPE tables, reaches, masks, the kernel.

In: a batch's bounds and positions. Out: an `AttentionPlan`, which `encoder.py` makes once a forward
pass and gives to every layer.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from restomod.model.attention.backends import choose_backend
from restomod.model.attention.cpu import block_mask
from restomod.model.config import EncoderConfig
from restomod.model.flops import UNLIMITED
from restomod.model.rope import rope_tables


class AttentionPlan(NamedTuple):
    """One batch's plan; made once, outside the compiled layers."""

    cu_seqlens: Tensor
    rope_global: tuple[Tensor, Tensor]
    rope_local: tuple[Tensor, Tensor]
    block_mask: Tensor | None
    slopes: Tensor | None
    max_seqlen: int
    reach_global: tuple[int, int]
    reach_local: tuple[int, int]
    backend: str
    deterministic: bool


def plan_attention(
    config: EncoderConfig,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dtype: torch.dtype,
    asked: str,
) -> AttentionPlan:
    """Return the plan of a batch of position_ids [T] and bounds cu_seqlens [N+1].

    `dtype` is that of queries and keys, `asked` the kernel that the recipe names.

    Raises UserError if that kernel cannot be used.
    """
    alibi = config.positions == "alibi"
    # Not in half precision, which would lose the angles of long positions.
    table_dtype = dtype if dtype == torch.float64 else torch.float32
    half = config.local_window // 2
    reach_local = (half, 0 if config.causal else half)
    slopes = _slopes_on(config.heads, position_ids.device) if alibi else None
    backend = choose_backend(asked, position_ids.device.type, dtype, alibi, config.head_size)
    mask = None
    if backend == "cpu" and config.global_every > 1 and config.layers > 1:
        tokens = position_ids.shape[0]
        mask = block_mask(cu_seqlens, tokens, *reach_local, slopes, dtype)
    return AttentionPlan(
        cu_seqlens,
        rope_tables(position_ids, config.rope_channels, config.rope_base_global, table_dtype),
        rope_tables(position_ids, config.rope_channels, config.rope_base_local, table_dtype),
        mask,
        slopes,
        max_seqlen,
        (UNLIMITED, 0 if config.causal else UNLIMITED),
        reach_local,
        backend,
        torch.are_deterministic_algorithms_enabled(),
    )


@functools.cache
def _slopes_on(heads: int, device: torch.device) -> Tensor:
    """Copy the slopes to a device once: a copy from the host waits for it."""
    return alibi_slopes(heads).to(device)


def alibi_slopes(heads: int) -> Tensor:
    """Return [H] float32: a geometric sequence from 2^(-8/H), as arXiv 2108.12409 has it; for other
    head counts than powers of two, the odd members of the next power's sequence follow."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (n + 1) / power) for n in range(power)]
    slopes += [2 ** (-4 * (2 * n + 1) / power) for n in range(heads - power)]
    return torch.tensor(slopes)
