"""Masked-language-model corruption: which tokens are predicted, and what stands in their place.

In: a row's tokens and a generator. Out: what the model sees and what it predicts; the room that
predicted tokens need. `data/rows.py` masks rows with it; batches and plans ask for rates and room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from restomod.config import MaskConfig, PhaseConfig
from restomod.data.tokenizer import Tokenizer
from restomod.units import parse_slots

IGNORED = -100
"""Label of a position that is not predicted."""
WORD_TOKENS = 8
"""Longer words are masked in pieces of so many tokens: else a line of base64 could be all of a
row's predictions."""


def mask_rate(config: MaskConfig, slots: int) -> float:
    """Return the mask rate `slots` after the phase began."""
    before = (0, config.rate)
    for step in config.later:
        after = (parse_slots(step.at), step.rate)
        if slots < after[0]:
            if config.between == "steps":
                return before[1]
            share = (slots - before[0]) / (after[0] - before[0])
            return before[1] + share * (after[1] - before[1])
        before = after
    return before[1]


def predicted_slots(slots: int, phase: PhaseConfig) -> int:
    """Return M, the room for predicted positions in `slots` tokens: at the phase's highest rate,
    what is expected and six standard deviations."""
    if phase.objective == "clm":
        return slots
    rate = max(phase.mask.rate, *(step.rate for step in phase.mask.later), 0.0)
    drawn_together = WORD_TOKENS if phase.mask.whole_word else 1
    deviation = math.sqrt(slots * drawn_together * rate * (1 - rate))
    return min(slots, math.ceil(rate * slots + 6 * deviation))


class Masker:
    """Masks rows of tokens.

    Special tokens (and ids of the padded vocabulary that no token has) are never masked and never
    drawn as a random replacement.
    """

    def __init__(self, config: MaskConfig, tokenizer: Tokenizer) -> None:
        self._config = config
        self._mask_id = tokenizer.mask_id
        self._is_ordinary, self._ordinary = _ordinary(
            tokenizer.vocab_size, tuple(tokenizer.reserved_ids)
        )
        self._words = tokenizer.word_parts() if config.whole_word else None

    def __call__(
        self, tokens: np.ndarray, generator: np.random.Generator, rate: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs [T], positions [M]): `tokens` with the predicted ones corrupted, of the
        same type, and where they are, in order. Each ordinary token, or each word, is drawn
        independently; what stands in a predicted token's place is drawn for each token."""
        chosen = None
        if self._words is not None:
            words = self._word_numbers(tokens)
            chosen = generator.random(int(words[-1]) + 1, dtype=np.float32)[words] < rate
        return _mask(
            tokens,
            rate,
            generator,
            self._is_ordinary,
            self._ordinary,
            self._mask_id,
            self._config,
            chosen,
        )

    def _word_numbers(self, tokens: np.ndarray) -> np.ndarray:
        """Return the number of each token's word in the row, [T] int64."""
        assert self._words is not None
        starts = self._words.starts[tokens]
        starts[0] = True
        starts[1:] |= self._words.first[tokens[1:]] != self._words.last[tokens[:-1]]
        special = ~self._is_ordinary[tokens]
        starts |= special
        starts[1:] |= special[:-1]
        begins = np.flatnonzero(starts)
        numbers = np.cumsum(starts) - 1
        within = np.arange(len(tokens)) - begins[numbers]
        return np.cumsum(starts | (within % WORD_TOKENS == 0)) - 1


def _mask(
    tokens: np.ndarray,
    rate: float,
    generator: np.random.Generator,
    is_ordinary: np.ndarray,
    ordinary: np.ndarray,
    mask_id: int,
    config: MaskConfig,
    chosen: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask the tokens that are `chosen` ([T] bool), or drawn at `rate`, and ordinary."""
    if chosen is None:
        draw = generator.random(len(tokens), dtype=np.float32)
        positions = np.flatnonzero(draw < np.float32(rate))
        positions = positions[is_ordinary[tokens[positions]]]
        share = draw[positions] / np.float32(rate)  # uniform among those below the rate
    else:
        positions = np.flatnonzero(chosen & is_ordinary[tokens])
        share = generator.random(len(positions), dtype=np.float32)
    inputs = tokens.copy()
    inputs[positions[share < config.mask_share]] = mask_id
    swapped = positions[
        (share >= config.mask_share) & (share < config.mask_share + config.random_share)
    ]
    inputs[swapped] = ordinary[generator.integers(len(ordinary), size=len(swapped))]
    return inputs, positions


@lru_cache(maxsize=8)
def _ordinary(vocab_size: int, reserved: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return which ids are ordinary, [vocab_size] bool, and the ordinary ones, [n] int64."""
    is_ordinary = np.ones(vocab_size, bool)
    is_ordinary[list(reserved)] = False
    return is_ordinary, np.flatnonzero(is_ordinary)


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
    predicted nor drawn, whether or not `special_ids` names it.

    Inputs have the tokens' type, or a wider one where that cannot hold the vocabulary. Raises
    ValueError for what are no ids of it, and for a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate {rate} is no share of the tokens: it must lie in [0, 1]")
    tokens = _ids(tokens, vocab_size)
    config = MaskConfig()
    is_ordinary, ordinary = _ordinary(vocab_size, (*special_ids, mask_id))
    inputs, positions = _mask(tokens, rate, rng, is_ordinary, ordinary, mask_id, config)
    labels = np.full(len(tokens), IGNORED, np.int64)
    labels[positions] = tokens[positions]
    return inputs, labels


def _ids(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return ids in a type that holds any other of the vocabulary, too."""
    ids = np.asarray(tokens) if len(tokens) else np.zeros(0, np.int64)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"tokens have shape {ids.shape} and type {ids.dtype}: [T] ids are wanted")
    foreign = ids[(ids < 0) | (ids >= vocab_size)]
    if len(foreign):
        raise ValueError(f"token {foreign[0]} does not exist in a vocabulary of {vocab_size}")
    if np.iinfo(ids.dtype).max < vocab_size - 1:
        ids = ids.astype(np.promote_types(ids.dtype, np.min_scalar_type(vocab_size - 1)))
    return ids
