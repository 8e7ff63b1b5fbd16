"""The feed-forward block: a gated linear unit (arXiv 2002.05202).

Shapes: T tokens in the packed batch, D hidden, I intermediate size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restomod.kernels import use_triton
from restomod.kernels.glu import glu
from restomod.model.config import EncoderConfig


class GatedMLP(nn.Module):
    """input, gate = Wi x; out = Wo (activation(input) * gate)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        bias = config.mlp_bias
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=bias)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        projected = self.Wi(x)
        if use_triton(projected) and not torch.compiler.is_compiling():
            return self.Wo(glu(projected, self.activation))
        value, gate = projected.chunk(2, dim=-1)
        value = F.gelu(value) if self.activation == "geglu" else F.silu(value)
        return self.Wo(value * gate)
