"""AdamW (arXiv 1711.05101) with fully decoupled weight decay and, if asked for, gradient clipping.

Enters: gradients, of plain tensors or of shards. Leaves: new weights and moments. Built by
`optim/build.py`, called by the trainer. It is StableAdamW without that one's clip: torch's fused
kernel, skipped updates, statistics, shards and state are StableAdamW's, and the numbers are
torch.optim.AdamW's with a weight decay of weight_decay / lr_max (tests compare the two).

The norm of all gradients together, which clipping needs, is the one that is summed over the shards
for the metrics anyway: no message and no host sync is added. The kernel divides by it as it reads.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from restomod.optim.sharding import local
from restomod.optim.stable_adamw import Coefficients, Measured, StableAdamW, Statistics


class AdamW(StableAdamW):
    """AdamW. Where the 2-norm of all gradients together exceeds `clip_norm`, all are scaled down to
    it; 0 clips nothing.

    `statistics` tells the norm before clipping; its clip rate is 1 if the step was clipped, else 0,
    and its largest RMS is 0.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        lr_max: float,
        clip_norm: float = 0.0,
        **others: Any,
    ) -> None:
        """Take parameters or groups of them, and StableAdamW's arguments.

        Raises ValueError for a number out of its range.
        """
        super().__init__(params, lr, lr_max, **others)
        if clip_norm < 0:
            raise ValueError(f"clip_norm is {clip_norm}; it must not be negative")
        self._clip_norm = clip_norm

    def statistics(self) -> Statistics:
        """Return the figures of the last step, without a host sync."""
        figures = super().statistics()
        if self._gradient_divisor is None:
            return figures
        return figures._replace(clip_rate=(self._gradient_divisor > 1).float())

    def _read(self, w: Tensor, c: Coefficients) -> Measured:
        assert w.grad is not None
        g = local(w.grad).flatten()
        return Measured(w, torch.stack([g.new_zeros(()), torch.dot(g, g)]), 0, c)

    def _judge(self, measured: Sequence[Measured]) -> None:
        super()._judge(measured)
        if self._clip_norm:
            norm = self._sums[:, 1].sum().sqrt()
            self._gradient_divisor = (norm / self._clip_norm).clamp_min(1.0)
