"""The masked-language-model head, and its loss.

Enters: hidden states of the positions to predict. Leaves: logits, loss sum, and counts.

Shapes: M masked positions, D hidden, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100  # the label of a position that has no prediction to make


class Head(nn.Module):
    """Dense, GELU, norm, then the embedding as decoder (arXiv 1608.05859) with its own bias."""

    def __init__(self, hidden_size: int, vocab_size: int, norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Score hidden [M, D] against embedding [V, D] -> [M, V]."""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), embedding, self.bias)


def mlm_sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss sum (float32), right predictions and labels (both counted), without IGNORED."""
    loss = F.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORED)
    kept = labels != IGNORED
    right = (logits.detach().argmax(-1) == labels) & kept
    return loss, right.sum(), kept.sum()
