"""An optimizer of the user's own: its rule turns gradients into directions, all else is as ours.

Enters: gradients, of plain tensors or of shards, and a rule (`extensions.py`, docs/extend.md).
Leaves: new weights and moments. Built by `optim/build.py`, called by the trainer. Learning rate,
weight decay, skipped updates, statistics and shards are StableAdamW's.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from restomod.errors import UserError
from restomod.optim.sharding import local
from restomod.optim.stable_adamw import Measured, StableAdamW, decay_per_lr


class Rule(Protocol):
    """What the user's class has."""

    @property
    def moments(self) -> Sequence[str]:
        """Names of the tensors that it keeps of each parameter; they begin as zeros."""

    def __call__(self, gradient: Tensor, moments: dict[str, Tensor], step: int) -> Tensor:
        """Return the direction against which the weight goes, of the gradient's shape.

        `moments` are its tensors by name, changed in place; `step` counts from 1. A rank may hold
        any part of a parameter, so all goes element by element.
        """


class Own(StableAdamW):
    """w = w (1 - weight_decay lr / lr_max) - lr rule(g), for every parameter.

    Nothing is clipped: the statistics' clip rate and largest RMS are 0.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, lr_max: float, rule: Rule
    ) -> None:
        super().__init__(params, lr, lr_max)
        self._rule = rule

    def _measure(self, group: dict[str, Any]) -> list[Measured]:
        measured = []
        for w in group["params"]:
            if w.grad is None:
                continue
            state = self.state[w]
            if not state:
                state["step"] = torch.tensor(0.0)
                state |= {name: torch.zeros_like(w) for name in self._rule.moments}
            state["step"] += 1
            g = local(w.grad).flatten()
            measured.append(Measured(w, torch.stack([g.new_zeros(()), torch.dot(g, g)]), 0))
        return measured

    def _update(
        self, group: dict[str, Any], measured: Sequence[Measured], divisors: Sequence[Tensor]
    ) -> None:
        skip = self.skipped.bool()
        lr, kept = group["lr"], 1 - group["lr"] * decay_per_lr(group)
        for w in (m.parameter for m in measured):
            assert w.grad is not None
            state, weight = self.state[w], local(w)
            moments = {name: local(state[name]) for name in self._rule.moments}
            before = {name: moment.clone() for name, moment in moments.items()}
            direction = self._rule(local(w.grad), moments, int(state["step"]))
            if getattr(direction, "shape", None) != weight.shape:
                name, given = type(self._rule).__name__, _described(direction)
                raise UserError(
                    f"optimizer.name: {name}: returned {given} for a gradient of shape "
                    f"{list(weight.shape)}; a direction has that shape"
                )
            for name, moment in moments.items():
                moment.copy_(torch.where(skip, before[name], moment))
            weight.copy_(torch.where(skip, weight, torch.sub(weight * kept, direction, alpha=lr)))


def _described(direction: Any) -> str:
    if isinstance(direction, Tensor):
        return f"a tensor of shape {list(direction.shape)}"
    return f"a {type(direction).__name__}"
