"""Triton kernels, each beside its plain reference, which runs wherever Triton does not."""

import os

from torch import Tensor


def use_triton(x: Tensor) -> bool:
    """Return whether kernels take x: on CUDA, and in Triton's interpreter."""
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
