"""Triton kernels, each beside its plain reference, which runs wherever Triton does not.

Every module has the public function, `*_reference` with plain operations, the kernels, and a
`*_launch` function with their constants, from which both the launch and the test that compiles them
ahead of time take theirs. docs/kernels.md says why each exists.
"""

import os

from torch import Tensor


def use_triton(x: Tensor) -> bool:
    """Return whether kernels take x: on CUDA, and in Triton's interpreter."""
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
