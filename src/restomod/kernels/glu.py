"""The gate of a GLU.

Shapes: T tokens in the packed batch, I intermediate size.
"""

from torch import Tensor
from torch.nn import functional as F


def glu(x: Tensor, activation: str) -> Tensor:
    """Return activation(value) * gate of x [T, 2I], value before gate: [T, I]."""
    value, gate = x.chunk(2, dim=-1)
    return (F.gelu(value) if activation == "geglu" else F.silu(value)) * gate
