"""Residual sum and norm in one pass.

Shapes: T tokens in the packed batch, D hidden.
"""

from torch import Tensor
from torch.nn import functional as F


def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool
) -> tuple[Tensor, Tensor]:
    """Return h = x + residual [T, D], and h normalised."""
    h = x + residual
    if rms:
        return h, F.rms_norm(h, h.shape[-1:], weight, eps)
    return h, F.layer_norm(h, h.shape[-1:], weight, bias, eps)
