"""Triton where it is installed; where it is not, modules with kernels can still be imported.

`jit` and `tl` are Triton's own; without it, `jit` leaves a function as it is and nothing calls it.
"""

from __future__ import annotations

from typing import Any

tl: Any
jit: Any
try:
    import triton
    import triton.language
except ImportError:

    class _Absent:
        constexpr = None

    def jit(function: Any) -> Any:
        return function

    tl = _Absent
else:
    jit, tl = triton.jit, triton.language


def next_power_of_2(n: int) -> int:
    """Return the least power of two that is at least n, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()
