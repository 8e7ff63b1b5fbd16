"""Muon (Jordan et al. 2024; arXiv 2502.16982): steps along the orthogonalised momentum of matrices.

Enters: gradients of hidden matrices; all other parameters follow StableAdamW. Leaves: new weights
and momenta. Built by `optim/build.py`, called by the trainer.

Per matrix [A, B], or part of one that is a matrix of its own (queries, keys and values; a gated
unit's two halves):

    m = momentum m + (1 - momentum) g
    O = orthogonalise((1 - momentum) g + momentum m)
    w = w (1 - weight_decay lr / lr_max) - 0.2 sqrt(max(A, B)) lr O

O has a root mean square of about 1 / sqrt(max(A, B)), so that the update's is 0.2 lr, as AdamW's
usually is: one learning rate and one schedule serve both rules.

torch.optim.Muon is the same for whole plain matrices (tests compare the two), but takes a
matrix for one whatever its parts are, orthogonalises one at a time and always in bfloat16, which
most CPUs emulate, cannot skip an update without a host sync, and leaves a DTensor's products to
DTensor's dispatch, so that each rank of a shard group does the work for every matrix. Here each
rank orthogonalises its share of the matrices (`sharding.RowExchange`). Under DDP all ranks do all.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from restomod.optim.sharding import RowExchange, by_layout, local
from restomod.optim.stable_adamw import Measured, StableAdamW, decay_per_lr

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration (Jordan et al. 2024)."""
ITERATIONS = 5
RMS = 0.2
"""Root mean square of an update at a learning rate of 1 (arXiv 2502.16982, section 2.2)."""
BATCH_ELEMENTS = 1 << 24
"""Elements of the matrices that are orthogonalised together, at most."""


class Muon(StableAdamW):
    """Muon for groups with `parts` > 0, of 2-D parameters that hold so many matrices of equal
    size, one below the other; StableAdamW for the others.

    Statistics, `veto` and `skipped` are StableAdamW's and cover all groups; nothing of Muon's
    updates is clipped.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, lr_max: float, momentum: float = 0.95,
        **others: Any,
    ) -> None:  # fmt: skip
        """Take groups, and StableAdamW's arguments; a group may override `momentum` too.

        Raises ValueError for a number out of its range, and for a parameter that is not 2-D or that
        its group's `parts` do not divide.
        """
        super().__init__(params, lr, lr_max, **others)
        for group in self.param_groups:
            group.setdefault("parts", 0)
            group.setdefault("momentum", momentum)
            _check(group)

    def _measure(self, group: dict[str, Any]) -> list[Measured]:
        if not group["parts"]:
            return super()._measure(group)
        measured = []
        for w in group["params"]:
            if w.grad is None:
                continue
            if not self.state[w]:
                self.state[w]["momentum_buffer"] = torch.zeros_like(w)
            g = local(w.grad).flatten()
            measured.append(Measured(w, torch.stack([g.new_zeros(()), torch.dot(g, g)]), 0))
        return measured

    def _update(
        self, group: dict[str, Any], measured: Sequence[Measured], divisors: Sequence[Tensor]
    ) -> None:
        if not group["parts"]:
            return super()._update(group, measured, divisors)
        parameters = [m.parameter for m in measured]
        skip = self.skipped.bool()
        directions = []
        for w in parameters:
            assert w.grad is not None
            g, m = local(w.grad), local(self.state[w]["momentum_buffer"])
            m.copy_(torch.where(skip, m, m.lerp(g, 1 - group["momentum"])))
            directions.append(g.lerp(m, group["momentum"]))
        lr, kept = group["lr"], 1 - group["lr"] * decay_per_lr(group)
        for w, direction in zip(
            parameters, orthogonal_updates(parameters, directions, group["parts"]), strict=True
        ):
            rows, columns = w.shape
            rate = lr * RMS * math.sqrt(max(rows // group["parts"], columns))
            old = local(w)
            old.copy_(torch.where(skip, old, torch.sub(old * kept, direction, alpha=rate)))


def orthogonal_updates(
    parameters: Sequence[Tensor], directions: Sequence[Tensor], parts: int
) -> list[Tensor]:
    """Return this rank's rows of the parameters' orthogonalised directions.

    `directions` are this rank's rows, of the parameters' layout. Rounds to bfloat16 on CUDA.
    """
    updates = list(directions)
    for layout, members in by_layout(parameters).items():
        mine = [directions[n] for n in members]
        if mine[0].device.type == "cuda":
            mine = [direction.bfloat16() for direction in mine]
        if layout is None:
            done = orthogonalise(mine, parts)
        else:
            shapes = [(parameters[n].shape[0], parameters[n].shape[1]) for n in members]
            exchange = RowExchange(shapes, layout)
            done = exchange.scatter(orthogonalise(exchange.gather(mine), parts), mine)
        for n, update in zip(members, done, strict=True):
            updates[n] = update
    return updates


def orthogonalise(matrices: Sequence[Tensor], parts: int) -> list[Tensor]:
    """Return each matrix [rows, columns] with its `parts`, equal groups of rows, orthogonalised.

    Matrices of a shape go through the iteration together, in their own dtype.
    """
    of_shape: dict[torch.Size, list[int]] = {}
    for n, matrix in enumerate(matrices):
        of_shape.setdefault(matrix.shape, []).append(n)
    done = list(matrices)
    for (rows, columns), members in of_shape.items():
        batch = max(1, BATCH_ELEMENTS // (rows * columns))
        for begin in range(0, len(members), batch):
            some = members[begin : begin + batch]
            stacked = torch.stack([matrices[n] for n in some])
            each = newton_schulz(stacked.view(-1, rows // parts, columns))
            for n, matrix in zip(some, each.reshape(stacked.shape).unbind(), strict=True):
                done[n] = matrix
    return done


def newton_schulz(x: Tensor) -> Tensor:
    """Return matrices near U V^T for each of x [N, A, B] = U S V^T, by a quintic iteration."""
    a, b, c = COEFFICIENTS
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _check(group: dict[str, Any]) -> None:
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum is {group['momentum']}; it must be in [0, 1)")
    for parameter in group["params"] if group["parts"] else ():
        if parameter.ndim != 2 or parameter.shape[0] % group["parts"]:
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)} does not consist of "
                f"{group['parts']} matrices of equal size"
            )
