"""LayerNorm and RMSNorm, alone or with the residual sum before them.

Enters: the residual stream, and what a block adds to it. Leaves: their sum, and its norm.

Shapes: T tokens in the packed batch, D hidden.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restomod.kernels import use_triton
from restomod.kernels.norm import add_norm
from restomod.model.config import EncoderConfig


class Norm(nn.Module):
    """The configuration's norm over the last dimension, with a weight and perhaps a bias."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.rms = config.norm == "rmsnorm"
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size)) if config.norm_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [T, D]."""
        # FSDP gathers weights in bfloat16 beside a float32 stream: not all kernels take both.
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        weight = self.weight.to(wide)
        if self.rms:
            return F.rms_norm(x, x.shape[-1:], weight, self.eps)
        bias = None if self.bias is None else self.bias.to(wide)
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def add(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """Return h = x + branch, and h normalised.

        On CUDA our kernel makes both in one pass, except under torch.compile, which fuses the plain
        operations with their neighbours.
        """
        if use_triton(x) and not torch.compiler.is_compiling():
            return add_norm(x, branch, self.weight, self.bias, self.eps, self.rms)
        h = x + branch
        return h, self(h)
