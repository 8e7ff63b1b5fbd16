"""Floating-point operations of training, as plans and metrics count them.

Enters: the encoder's shape and the lengths of documents. Leaves: FLOPs per token of a forward and a
backward pass (three times the forward): products of matrices only, a multiplication and an addition
being two. Attention counts the pairs of tokens that see each other, not what masks cost.
"""

from collections.abc import Sequence

from restomod.config import ModelConfig


def linear_flops_per_token(config: ModelConfig, vocab_size: int, mask_rate: float) -> float:
    """Return training FLOPs of the linear layers, the head at masked tokens only."""
    d, i = config.hidden_size, config.intermediate_size
    block = 4 * d * d + 3 * d * i  # Wqkv, Wo; Wi of two halves, Wo
    head = d * d + d * vocab_size
    return 3 * 2 * (config.layers * block + mask_rate * head)


def attention_flops_per_token(config: ModelConfig, lengths: Sequence[float]) -> float:
    """Return training FLOPs of attention, averaged over the tokens of such documents."""
    tokens = sum(lengths)
    global_layers = -(-config.layers // config.global_every)
    seen_globally = sum(length * length for length in lengths)
    seen_locally = sum(_pairs(length, config.local_window // 2) for length in lengths)
    pairs = global_layers * seen_globally + (config.layers - global_layers) * seen_locally
    # Scores and the mix of values cost 2 x hidden_size each for every pair.
    return 3 * 2 * 2 * config.hidden_size * pairs / tokens


def flops_per_token(
    config: ModelConfig, vocab_size: int, lengths: Sequence[float], mask_rate: float
) -> float:
    """Return training FLOPs per token; lengths are those of a sample of documents."""
    return linear_flops_per_token(config, vocab_size, mask_rate) + attention_flops_per_token(
        config, lengths
    )


def _pairs(length: float, window: int) -> float:
    """Count (query, key) pairs at most `window` apart in a document."""
    reach = min(window, length - 1)
    return length + 2 * (reach * length - reach * (reach + 1) / 2)
