"""Initial weights: truncated normals, as ModernBERT was trained from (paper, A.2; `full_megatron`).

Every parameter draws from a generator of its own, seeded by (seed, name): its values depend neither
on the order of construction nor on the device.
"""

import hashlib
import math

import torch
from torch import Tensor

from restomod.model.encoder import MaskedLM

STD = 0.02
CUTOFF = 2.0  # truncation, in standard deviations


@torch.no_grad()
def initialize(model: MaskedLM, seed: int) -> None:
    """Set all weights: std 0.02, and 0.02 / sqrt(2 layers) where a block adds to the residual."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        else:
            std = STD / math.sqrt(2 * model.config.layers) if name.endswith("Wo.weight") else STD
            values = torch.empty(parameter.shape)
            generator = torch.Generator().manual_seed(_seed_of(seed, name))
            torch.nn.init.trunc_normal_(
                values, std=std, a=-CUTOFF * std, b=CUTOFF * std, generator=generator
            )
            parameter.copy_(values)


@torch.no_grad()
def set_decoder_bias(model: MaskedLM, log_probs: Tensor) -> None:
    """Set the decoder's bias to log-probabilities [V]: the first loss is then the unigrams'."""
    bias = model.head.bias
    if bias is None:
        raise ValueError("the decoder has no bias (decoder_bias is False)")
    if log_probs.shape != bias.shape:
        raise ValueError(
            f"log_probs has shape {tuple(log_probs.shape)}; expected {tuple(bias.shape)}"
        )
    bias.copy_(log_probs)


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
