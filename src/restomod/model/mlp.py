"""The feed-forward block: GeGLU (arXiv 2002.05202) without biases.

Shapes: T tokens in the packed batch, D hidden, I intermediate size.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class GatedMLP(nn.Module):
    """input, gate = Wi x; out = Wo (gelu(input) * gate)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.Wi = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.Wo = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        value, gate = self.Wi(x).chunk(2, dim=-1)
        return self.Wo(F.gelu(value) * gate)
