"""FLOPs of training, exact by formula: what `mfu` in the metrics is computed from.

Counted: the matrix products of linear layers and of attention, two operations per multiply-add, and
twice the forward pass for the backward. Not counted: norms, activations, softmax, RoPE, the
embedding look-up, recomputation.
"""

from collections.abc import Sequence

from restomod.model.encoder import EncoderConfig


def training_flops(config: EncoderConfig, lengths: Sequence[int], masked: int) -> float:
    """Return the FLOPs of training on documents of these lengths with `masked` predicted tokens."""
    d, layers = config.hidden_size, config.layers
    half = config.local_window // 2
    layer = 4 * d * d + 3 * d * config.intermediate_size
    linear = layers * layer * sum(lengths) + (d * d + d * config.vocab_size) * masked
    global_layers = len(range(0, layers, config.global_every))
    pairs = global_layers * sum(n * n for n in lengths)
    pairs += (layers - global_layers) * sum(_within_window(n, half) for n in lengths)
    return 3 * 2 * (linear + 2 * d * pairs)


def _within_window(length: int, half: int) -> int:
    """Return the pairs (query, key) of a document that are at most `half` apart."""
    near = min(half, length - 1)
    return length + 2 * (near * length - near * (near + 1) // 2)
