"""The masked-language-model head.

Enters: hidden states of the positions to predict. Leaves: logits, or the sums of their loss.

Shapes: M predicted positions, D hidden, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restomod.model.config import EncoderConfig
from restomod.model.loss import LossSums, linear_cross_entropy
from restomod.model.norm import Norm


class Head(nn.Module):
    """Dense, GELU, norm; then the embedding as decoder (arXiv 1608.05859), with its own bias."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.head_bias)
        self.norm = Norm(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.decoder_bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the features [M, D] that the decoder scores."""
        return self.norm(F.gelu(self.dense(hidden)))

    def logits(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Score hidden [M, D] against embedding [V, D] -> [M, V]."""
        return F.linear(self(hidden), embedding, self.bias)

    def sums(
        self, hidden: Tensor, embedding: Tensor, labels: Tensor, z_loss: float, logits_mb: int
    ) -> LossSums:
        """Return the loss of hidden [M, D] on labels [M]; see `linear_cross_entropy`."""
        return linear_cross_entropy(self(hidden), embedding, self.bias, labels, z_loss, logits_mb)
