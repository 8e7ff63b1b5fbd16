"""What data sheets say of GPUs: dense bf16 products, memory, its bandwidth, the link to other GPUs.

Imports no torch: `restomod plan` runs where there is no GPU. `train/hardware.py` and the doctor
look up the GPU that they run on.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from restomod.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    part: str
    """Part of the name by which the driver calls it."""
    flops: float
    """Dense bf16 peak, FLOP/s."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes/s of its memory."""
    link: float
    """Bytes/s to the GPUs of its node, in each direction: NVLink where it joins all of them, PCIe
    elsewhere."""


GPUS = {
    "b200": Gpu("B200", 2250e12, 180e9, 8.0e12, 900e9),
    "h200": Gpu("H200", 989e12, 141e9, 4.8e12, 450e9),
    "h100-nvl": Gpu("H100 NVL", 835e12, 94e9, 3.9e12, 64e9),
    "h100-pcie": Gpu("H100 PCIe", 756e12, 80e9, 2.0e12, 64e9),
    "h100": Gpu("H100", 989e12, 80e9, 3.35e12, 450e9),
    "a100-40gb": Gpu("A100-SXM4-40GB", 312e12, 40e9, 1.555e12, 300e9),
    "a100": Gpu("A100", 312e12, 80e9, 2.039e12, 300e9),
    "l40s": Gpu("L40S", 362e12, 48e9, 0.864e12, 32e9),
    "rtx4090": Gpu("4090", 165e12, 24e9, 1.008e12, 32e9),
    "l4": Gpu("L4", 121e12, 24e9, 0.3e12, 32e9),
    "a10": Gpu("A10", 125e12, 24e9, 0.6e12, 32e9),
}
"""By the name that `restomod plan --gpu` takes; the first whose part is in a device's name, with no
digit after it, counts for that device: an L40 is no L4, an RTX A1000 no A100."""


def gpu_named(name: str) -> Gpu:
    """Return the GPU that the user names; raises UserError for an unknown one."""
    found = GPUS.get(name.lower())
    if found is None:
        begun = [known for known in GPUS if name.lower().startswith(known)]
        near = begun or difflib.get_close_matches(name.lower(), GPUS, n=1)
        hint = f"; did you mean {max(near, key=len)}?" if near else "."
        raise UserError(
            f"--gpu {name}: no data sheet of it is here{hint} There are {', '.join(GPUS)}"
        )
    return found


def peak_flops_of(device_name: str) -> float:
    """Return the bf16 peak of the GPU that the driver calls so; 0 for an unknown one."""
    known = (gpu for gpu in GPUS.values() if re.search(rf"{gpu.part}(?!\d)", device_name))
    return next((gpu.flops for gpu in known), 0.0)
