"""The encoder's configuration: a recipe's `model` section, and what tokenizer and phase add."""

from dataclasses import dataclass

from restomod.config import ModelConfig

BLOCK = 32
"""Queries that the CPU's local layers take at a time: more of them see more keys that the mask
hides, fewer make more calls. Local attention at ModernBERT's window is 5 to 12 % faster than with
64 at 12 heads, and as fast at 4."""


@dataclass
class EncoderConfig(ModelConfig):
    """Shape of the encoder. Stored with every checkpoint as model.json."""

    vocab_size: int = 50_368
    """Rows of the embedding; at least the tokenizer's size."""
    rope_base_global: float = 160_000.0
    """RoPE base of the global layers; a phase may change it on a living model."""
    rope_base_local: float = 10_000.0
    """RoPE base of the local layers, likewise."""
    causal: bool = False
    """Whether a token sees only itself and those before it (Ettin's decoders)."""
    max_sequence_length: int = 8192
    """Longest document seen in training, in tokens; exported, not enforced."""
    pad_id: int = 50_283
    """Id of [PAD]; exported."""
    cls_id: int = 50_281
    """Id of [CLS]; exported."""
    sep_id: int = 50_282
    """Id of [SEP]; exported."""
    seed: int = 0
    """Seed of the dropout masks."""
