"""The kernels there are, and the choice among them.

In: what the recipe asks for, device, dtype and model. Out: the kernel's name. `plan.py` calls it in
every forward pass; the trainer and the doctor ask beforehand.
"""

from __future__ import annotations

import functools
import logging

import torch

from restomod.config import ATTENTION_KERNELS
from restomod.errors import UserError
from restomod.model.attention.cpu import Cpu
from restomod.model.attention.cuda import (
    FlashAttention2,
    FlashAttention3,
    FlashAttention4,
    TorchVarlen,
)
from restomod.model.attention.reference import Reference
from restomod.model.attention.spec import Backend

log = logging.getLogger(__name__)

_BACKENDS: tuple[Backend, ...] = (
    FlashAttention2(),
    FlashAttention3(),
    FlashAttention4(),
    TorchVarlen(),
    Cpu(),
    Reference(),
)
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _BACKENDS}


@functools.cache
def choose_backend(asked: str, device: str, dtype: torch.dtype, alibi: bool, head_size: int) -> str:
    """Return the name of the kernel to use; logs it once.

    `asked` is a name of BACKENDS, or auto for the first that can run. Raises UserError naming what
    stands in the way of a kernel that was asked for.
    """
    if asked == "auto":
        name = next(
            name
            for name in ATTENTION_KERNELS
            if not _obstacle(BACKENDS[name], device, dtype, alibi, head_size)
        )
        log.info("attention: %s", name)
        return name
    if asked not in BACKENDS:
        raise UserError(
            f"compute.attention: no kernel {asked!r}; there are {', '.join(ATTENTION_KERNELS)}"
        )
    obstacle = _obstacle(BACKENDS[asked], device, dtype, alibi, head_size)
    if obstacle:
        raise UserError(f"compute.attention: {asked} cannot be used: {obstacle}")
    log.info("attention: %s, as asked", asked)
    return asked


def _obstacle(
    backend: Backend, device: str, dtype: torch.dtype, alibi: bool, head_size: int
) -> str:
    """Return why a kernel cannot do what is wanted, or nothing."""
    if backend.device not in (device, "any"):
        return f"it runs on {backend.device}, the model is on {device}"
    if dtype not in backend.dtypes:
        known = ", ".join(str(d).removeprefix("torch.") for d in backend.dtypes)
        return f"it computes in {known}, not in {str(dtype).removeprefix('torch.')}"
    if alibi and not backend.alibi:
        return "it does not know ALiBi (model.positions: alibi)"
    if head_size not in backend.head_sizes:
        sizes = backend.head_sizes
        return (
            f"it takes heads of {sizes.start} to {sizes[-1]} channels in steps of {sizes.step}, "
            f"and the model's have {head_size}"
        )
    return backend.missing()
