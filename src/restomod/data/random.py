"""Random generators that depend on what they are for, never on what was drawn before.

In: a seed and what the numbers are for. Out: a generator. Whatever draws in `data/` and `eval/`
calls it.
"""

import hashlib

import numpy as np


def keyed_generator(seed: int, *purpose: int | str) -> np.random.Generator:
    """Return a generator that is a pure function of (seed, purpose)."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))
