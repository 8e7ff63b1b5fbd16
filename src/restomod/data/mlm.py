"""Masked-language-model corruption: which tokens are predicted, and what stands in their place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from restomod.config import MaskConfig, PhaseConfig

IGNORED = -100
"""Label of a position that is not predicted."""


def predicted_slots(slots: int, phase: PhaseConfig) -> int:
    """Return M, the room for predicted positions in `slots` tokens."""
    if phase.objective == "clm":
        return slots
    rate = phase.mask.rate
    deviation = math.sqrt(slots * rate * (1 - rate))
    return min(slots, math.ceil(rate * slots + 6 * deviation))


class Masker:
    """Masks rows of tokens.

    `special_ids` (and ids of the padded vocabulary that no token has) are never masked and never
    drawn as a random replacement.
    """

    def __init__(
        self, config: MaskConfig, vocab_size: int, special_ids: Sequence[int], mask_id: int
    ) -> None:
        self._config = config
        self._mask_id = mask_id
        self._is_ordinary = np.ones(vocab_size, bool)
        self._is_ordinary[list(special_ids)] = False
        self._ordinary = np.flatnonzero(self._is_ordinary)

    def __call__(
        self, tokens: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs [T], positions [M]): `tokens` with the predicted ones corrupted, of the
        same type, and where they are, in order. Each ordinary token is drawn independently."""
        config = self._config
        draw = generator.random(len(tokens), dtype=np.float32)
        positions = np.flatnonzero(draw < np.float32(config.rate))
        positions = positions[self._is_ordinary[tokens[positions]]]
        share = draw[positions] / np.float32(config.rate)
        inputs = tokens.copy()
        inputs[positions[share < config.mask_share]] = self._mask_id
        swapped = positions[
            (share >= config.mask_share) & (share < config.mask_share + config.random_share)
        ]
        inputs[swapped] = self._ordinary[generator.integers(len(self._ordinary), size=len(swapped))]
        return inputs, positions


def mask_tokens(
    tokens: np.ndarray,
    rate: float,
    rng: np.random.Generator,
    vocab_size: int,
    special_ids: Sequence[int],
    mask_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs, labels), both [T]: 80 % of the predicted tokens become [MASK], 10 % a random
    ordinary token, 10 % stay; labels are -100 wherever nothing is predicted. [MASK] itself is never
    predicted nor drawn, whether or not `special_ids` names it."""
    masker = Masker(MaskConfig(rate=rate), vocab_size, [*special_ids, mask_id], mask_id)
    inputs, positions = masker(tokens, rng)
    labels = np.full(len(tokens), IGNORED, np.int64)
    labels[positions] = tokens[positions]
    return inputs, labels
