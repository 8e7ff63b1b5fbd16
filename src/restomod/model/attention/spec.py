"""What a kernel is told beside queries, keys and values, and what every kernel offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from restomod.model.flops import UNLIMITED


@dataclass(frozen=True)
class Spec:
    """Which tokens see which, and how far apart they seem."""

    cos: Tensor
    """[T, R/2]; R = 0 turns nothing."""
    sin: Tensor
    """[T, R/2]."""
    cu_seqlens: Tensor
    """[N+1] int32 bounds of the documents; repeated numbers are empty documents."""
    block_mask: Tensor | None
    """[B, 1 or H, BLOCK, BLOCK + left + right], for the CPU's local layers."""
    slopes: Tensor | None
    """[H] float32: ALiBi adds -slope x distance to the scores."""
    max_seqlen: int
    """No document is longer."""
    left: int
    """Tokens before itself that a token sees; UNLIMITED for all."""
    right: int
    """Tokens after itself that a token sees; 0 is causal."""
    deterministic: bool
    """Whether gradients must be bit-equal from run to run."""

    @property
    def is_local(self) -> bool:
        return self.left != UNLIMITED


class Backend(Protocol):
    """A kernel. `forward` returns the output [T, H, K] and two tensors that `backward` needs: the
    logarithm of each query's partition, and the rotated input."""

    name: str
    alibi: bool
    """Whether it knows ALiBi."""
    dtypes: tuple[torch.dtype, ...]
    device: str
    """cpu, cuda, or any."""
    head_sizes: range
    """Channels that a head may have."""
    needs_input: bool
    """Whether `backward` reads qkv; if not, it is given an empty tensor."""

    def missing(self) -> str:
        """Return why it cannot run on this machine, or nothing."""

    def forward(self, qkv: Tensor, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
        """Take qkv [T, 3, H, K]; return out, logsumexp and kept."""

    def backward(
        self, grad: Tensor, qkv: Tensor, out: Tensor, logsumexp: Tensor, kept: Tensor, spec: Spec
    ) -> Tensor:
        """Return the gradient of qkv [T, 3, H, K]."""

    def saved_shapes(
        self, qkv_shape: tuple[int, ...], left: int, right: int, rotated: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of logsumexp (float32; float64 if qkv is) and kept (as qkv)."""
