"""Dropout whose mask is a pure function of (seed, row, layer, position in the row, channel).

It is the same whatever the micro-batch, the rank, or a recomputation of the layer: there is no RNG
state. Called by `encoder.py` on the output of the attention block.

Shapes: T tokens in the packed batch, k rows, D channels.
"""

import torch
from torch import Tensor

_LANES = 4  # 16-bit numbers per 64-bit hash


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >> 63 else constant


_ODD_1 = _signed(0xBF58476D1CE4E5B9)  # splitmix64's multipliers and increment (Steele et al. 2014)
_ODD_2 = _signed(0x94D049BB133111EB)
_GOLDEN = _signed(0x9E3779B97F4A7C15)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right filling with zeros, which torch's >> of signed numbers does not."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Hash int64 numbers by splitmix64's finaliser; products wrap."""
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)).mul_(_ODD_1)
    x = (x ^ _shifted(x, 27)).mul_(_ODD_2)
    return x ^ _shifted(x, 31)


def token_keys(seed: int, row_ids: Tensor, tokens: int) -> Tensor:
    """Hash (seed, row, position in the row) of every token, once per batch: row_ids [k] -> [T]."""
    rows = _mix(_mix(row_ids.to(torch.int64)) + _signed(seed % (1 << 64)))
    positions = torch.arange(tokens // len(row_ids), device=row_ids.device)
    return _mix(rows[:, None] + _mix(positions)).view(-1)


def layer_keys(layers: int, channels: int, device: torch.device) -> Tensor:
    """Return int64 [layers, channels / 4]: what tells apart the layers and channels of a token."""
    groups = -(-channels // _LANES)
    # Layers take disjoint ranges of one counter, so that no two share a channel's key.
    return _mix(torch.arange(layers * groups, device=device)).view(layers, groups)


def keep_mask(keys: Tensor, layer_key: Tensor, channels: int, rate: float) -> Tensor:
    """Return bool [T, D]: False with probability `rate` (to 2^-16), independently everywhere.

    `keys` [T] are a batch's `token_keys`, `layer_key` [D/4] one of its `layer_keys`.
    """
    x = keys[:, None] ^ layer_key
    x = (x ^ _shifted(x, 32)) * _ODD_1
    x = (x ^ _shifted(x, 29)) * _ODD_2
    x = x ^ _shifted(x, 32)
    lanes = x.view(torch.int16)[:, :channels]
    return lanes >= min(round(rate * 65536) - 32768, 32767)


def dropout(x: Tensor, keys: Tensor, layer_key: Tensor, rate: float) -> Tensor:
    """Zero elements of x [T, D] with probability `rate` and scale the others by 1 / (1 - rate)."""
    return x * keep_mask(keys, layer_key, x.shape[-1], rate) * (1 / (1 - rate))
