"""Triton kernels, each beside its plain reference, which runs wherever Triton does not.

Every module has the public function, `*_reference` with plain operations, the kernels, and a
`*_launch` function with their constants, from which both the launch and the test that compiles them
ahead of time take theirs. docs/kernels.md says why each exists.
"""

import os

import torch
from torch import Tensor


def use_triton(x: Tensor) -> bool:
    """Return whether kernels take x: on CUDA and in Triton's interpreter, unless they would round
    its float64 to float32."""
    runs = x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and x.dtype != torch.float64
