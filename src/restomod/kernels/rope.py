"""RoPE on the packed projection of queries, keys and values.

Shapes: T tokens in the packed batch, H heads, K head dim, R turned channels (R <= K).
"""

import torch
from torch import Tensor


def rope_qk(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return rotated copies of the queries and keys of qkv [T, 3, H, K] as [T, 2, H, K]."""
    return rope_qk_reference(qkv, cos, sin)


def rope_qk_backward_(grad_qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn the gradients of queries and keys in grad_qkv [T, 3, H, K] back, in place."""
    grad_qkv[:, :2] = rope_qk_reference(grad_qkv, cos, -sin)


def rope_qk_reference(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute `rope_qk` with plain operations, in float32."""
    half = cos.shape[-1]
    x = qkv[:, :2].float()
    left, right, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    c, s = cos.float()[:, None, None], sin.float()[:, None, None]
    return torch.cat((left * c - right * s, right * c + left * s, rest), dim=-1).to(qkv.dtype)
