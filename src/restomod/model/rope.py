"""Rotary position embeddings (arXiv 2104.09864), channel c turning with channel c + R/2.

Enters: positions inside their documents. Leaves: cosines and sines, one table per RoPE base and
batch, which `attention/` applies to queries and keys.

Shapes: T tokens in the packed batch, K head dim, R turned channels (R <= K).
"""

import torch
from torch import Tensor

PIECE = 512  # tokens


def rope_tables(
    position_ids: Tensor, channels: int, base: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [T, R/2] of the angles position x base^(-2c / R), R = channels.

    Angles are rounded as transformers rounds them, in float32, whatever the dtype of the tables: at
    position 8,192 another order of operations turns a channel by up to 5e-4 more.
    """
    if channels == 0:
        nothing = position_ids.new_empty(position_ids.shape[0], 0, dtype=dtype)
        return nothing, nothing
    steps = torch.arange(0, channels, 2, device=position_ids.device).float()
    angles = position_ids.float()[:, None] * (1.0 / base ** (steps / channels))
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R channels of x [T, ..., K] by the angles of its token; differentiable."""
    half = cos.shape[-1]
    cos, sin = _broadcast(cos, x), _broadcast(sin, x)
    left, right, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    turned = (left * cos - right * sin, right * cos + left * sin)
    return torch.cat((*(part.to(x.dtype) for part in turned), rest), dim=-1)


def rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Write `rotate(x, cos, sin)` to out without temporaries; turn back by giving -sin.

    Goes through the tokens in pieces that stay in cache: 1.6 times faster on a CPU than in one go.
    """
    half = cos.shape[-1]
    cos, sin = _broadcast(cos.to(x.dtype), x), _broadcast(sin.to(x.dtype), x)
    parts = (half, half, x.shape[-1] - 2 * half)
    if parts[2]:
        out[..., 2 * half :] = x[..., 2 * half :]
    if not half:
        return
    pieces = (
        tensor.split(PIECE)
        for tensor in (*out.split(parts, -1)[:2], *x.split(parts, -1)[:2], cos, sin)
    )
    for out_left, out_right, left, right, c, s in zip(*pieces, strict=True):
        torch.mul(left, c, out=out_left)
        out_left.addcmul_(right, s, value=-1)
        torch.mul(right, c, out=out_right)
        out_right.addcmul_(left, s)


def _broadcast(table: Tensor, x: Tensor) -> Tensor:
    return table.view(table.shape[0], *[1] * (x.dim() - 2), table.shape[1])
