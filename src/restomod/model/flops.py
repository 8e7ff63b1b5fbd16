"""Floating-point operations of training, as plans and metrics count them.

Enters: the encoder's shape and the lengths of documents. Leaves: FLOPs per token of a forward and
a backward pass (three times the forward): products of matrices only, a multiplication and an
addition being two. Attention counts the pairs of tokens that see each other, not what masks cost;
activations that are computed again do not count. torch's FlopCounterMode counts the same for our
operators, which tell it.
"""

from collections.abc import Sequence

from restomod.config import ModelConfig

UNLIMITED = -1
"""A reach that ends with the document."""


def linear_flops_per_token(config: ModelConfig, vocab_size: int, predicted: float) -> float:
    """Return training FLOPs of the linear layers, the head at the share `predicted` of tokens."""
    d, i = config.hidden_size, config.intermediate_size
    block = 4 * d * d + 3 * d * i  # Wqkv, Wo; Wi of two halves, Wo
    head = d * d + d * vocab_size
    return 3 * 2 * (config.layers * block + predicted * head)


def attention_flops_per_token(
    config: ModelConfig, lengths: Sequence[float], causal: bool = False
) -> float:
    """Return training FLOPs of attention, averaged over the tokens of such documents."""
    global_layers = -(-config.layers // config.global_every)
    half = config.local_window // 2
    seen_globally = sum(pairs(n, UNLIMITED, 0 if causal else UNLIMITED) for n in lengths)
    seen_locally = sum(pairs(n, half, 0 if causal else half) for n in lengths)
    seen = global_layers * seen_globally + (config.layers - global_layers) * seen_locally
    # Scores and the mix of values cost 2 x hidden_size each for every pair.
    return 3 * 2 * 2 * config.hidden_size * seen / sum(lengths)


def flops_per_token(
    config: ModelConfig,
    vocab_size: int,
    lengths: Sequence[float],
    predicted: float,
    causal: bool = False,
) -> float:
    """Return training FLOPs per token; lengths are those of a sample of documents."""
    return linear_flops_per_token(config, vocab_size, predicted) + attention_flops_per_token(
        config, lengths, causal
    )


def pairs(length: float, left: int, right: int) -> float:
    """Count the (query, key) pairs of a document whose key lies at most `left` before the query and
    at most `right` behind it; -1 is any distance."""
    seen = length
    for reach in (left, right):
        near = length - 1 if reach == UNLIMITED else min(reach, length - 1)
        seen += near * length - near * (near + 1) / 2
    return seen
