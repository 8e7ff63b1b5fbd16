"""StableAdamW (arXiv 2304.13013): AdamW that steps less where a gradient outgrows its average.

Enters: gradients, of plain tensors or of shards (`optim/sharding.py`). Leaves: new weights and
moments, or, where the update is skipped, the old ones. The mathematics is torch-optimi's with
`decouple_lr=True`, as ModernBERT trained; unlike it, nothing costs a host sync. Built by
`optim/build.py`, called by the trainer.

Per tensor of n elements, at step t, with bias correction folded into b1 and b2:

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
    rate = lr / max(1, rms),  rms = sqrt(mean(g^2 / max(v, eps^2)))
    w = w (1 - weight_decay rate / lr_max) - rate m / (sqrt(v) + eps)

A first pass reads g and v of all tensors for the sums that the RMS and the gradient norm are made
of; one message adds the shards' sums. Then it is known, on the device, whether all of them are
finite, and torch's fused AdamW kernel, told the rates, does the rest in a second pass or leaves
everything as it is.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from restomod.optim.sharding import local, sum_over_shards

CHUNK = 1 << 20  # elements that the CPU reads at a time, so that intermediate results stay in cache


@dataclass(frozen=True)
class Coefficients:
    """Numbers of one step of one group."""

    beta1: float
    beta2: float
    eps: float
    lr: float
    decay_per_lr: float


@dataclass(frozen=True)
class Measured:
    """A parameter that is about to be updated."""

    parameter: Tensor
    sums: Tensor
    """[2]: g^2 / max(v, eps^2) and g^2, summed over what this rank holds."""
    elements: int
    """Of the whole parameter, if its update is clipped; 0 where it never is."""
    coefficients: Coefficients | None = None


class Statistics(NamedTuple):
    """The last step in figures: scalars on the device of the parameters. Of a step whose gradients
    are not finite, they are not either."""

    gradient_norm: Tensor
    """2-norm of all gradients together."""
    clip_rate: Tensor
    """Share of the tensors whose RMS exceeded 1, of those whose updates are clipped."""
    largest_rms: Tensor
    """Largest RMS of a tensor."""


class StableAdamW(torch.optim.Optimizer):
    """AdamW with the update clipping of Adafactor and fully decoupled weight decay.

    `lr_max` is the peak of the phase's learning-rate schedule: at the peak a weight loses
    `weight_decay` of itself per step, and less in proportion below it. All numbers of a group may
    change from step to step. A group with `decays: False` keeps its weights, whatever its
    weight_decay.

    An update is skipped, and weights and moments keep their bits, when `veto` is not 0 or when any
    gradient, on any rank, is infinite, NaN or so large that its square is. The host does not learn
    of it: `step` in the state counts attempts. Bias correction then forgets the past a bit slower
    than it should, but m and v stay averages of gradients, and v below g^2 only makes the clip act:
    a first update after k skipped ones is as long as one at the learning rate
    lr (1 - beta1) / (1 - beta1^(k + 1)).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        lr_max: float,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        compiled: bool = False,
    ) -> None:
        """Take parameters or groups of them; every group may override the other arguments.

        `compiled` has torch.compile make the pass over gradients and second moments one loop: the
        sums are rounded otherwise.

        Raises ValueError for a number out of its range.
        """
        defaults = {
            "lr": lr,
            "lr_max": lr_max,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decays": True,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            _check(group)
        self._compiled = compiled
        self.veto: Tensor | None = None
        """A scalar on the device of the parameters, the same on all ranks; not 0 skips updates. It
        stays until it is set again."""
        self.skipped = torch.zeros(())
        """Of the last step, on the device of the parameters: 1.0 if its update was skipped."""
        self._sums, self._rms = torch.zeros(1, 2), torch.zeros(1)
        self._clippable = 1
        self._gradient_divisor: Tensor | None = None
        """A scalar that all gradients are divided by, on the device of the parameters."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss if one is given.

        All parameters are on one device. Where they are sharded, all ranks must call it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [(group, self._measure(group)) for group in self.param_groups]
        measured = [tensor for _, members in groups for tensor in members]
        if measured:
            self._judge(measured)
            divisors = iter(self._rms.clamp_min(1.0).unbind())
            for group, members in groups:
                self._update(group, members, [next(divisors) for _ in members])
        return loss

    def statistics(self) -> Statistics:
        """Return the figures of the last step, without a host sync."""
        return Statistics(
            self._sums[:, 1].sum().sqrt(),
            (self._rms > 1).float().sum() / self._clippable,
            self._rms.max(),
        )

    def _judge(self, measured: Sequence[Measured]) -> None:
        """Add the shards' sums, and decide whether the update is skipped."""
        self._sums = sum_over_shards([m.sums for m in measured], [m.parameter for m in measured])
        elements = tuple(max(m.elements, 1) for m in measured)
        self._rms = (self._sums[:, 0] / _on_device(elements, self._sums.device)).sqrt()
        self._clippable = max(sum(m.elements > 0 for m in measured), 1)
        skip = ~self._sums.isfinite().all()
        if self.veto is not None:
            skip = skip | (self.veto != 0)
        self.skipped = skip.float()

    def _measure(self, group: dict[str, Any]) -> list[Measured]:
        """Count the step of the group's parameters that have a gradient, and read their sums."""
        measured = []
        coefficients: dict[float, Coefficients] = {}
        for w in group["params"]:
            if w.grad is None:
                continue
            state = self.state[w]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(w)
                state["exp_avg_sq"] = torch.zeros_like(w)
            state["step"] += 1
            step = state["step"].item()
            if step not in coefficients:
                coefficients[step] = _coefficients(group, step)
            measured.append(self._read(w, coefficients[step]))
        return measured

    def _read(self, w: Tensor, c: Coefficients) -> Measured:
        """Read a parameter's gradient and second moment for their sums."""
        assert w.grad is not None
        g, v = local(w.grad), local(self.state[w]["exp_avg_sq"])
        sums = update_sums(g, v, c.beta2, c.eps, self._compiled)
        return Measured(w, sums, w.numel(), c)

    def _update(
        self, group: dict[str, Any], measured: Sequence[Measured], divisors: Sequence[Tensor]
    ) -> None:
        # A step so late that the kernel's bias correction is 1: ours is in the betas.
        late = _on_device((1e9,), self.skipped.device).squeeze()
        for m, divisor in zip(measured, divisors, strict=True):
            w, c = m.parameter, m.coefficients
            assert w.grad is not None
            assert c is not None
            state = self.state[w]
            torch._fused_adamw_(
                [local(w)],
                [local(w.grad)],
                [local(state["exp_avg"])],
                [local(state["exp_avg_sq"])],
                [],
                [late],
                lr=c.lr / divisor,
                beta1=c.beta1,
                beta2=c.beta2,
                weight_decay=c.decay_per_lr,
                eps=c.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=self._gradient_divisor,
                found_inf=self.skipped,
            )


def update_sums(g: Tensor, v: Tensor, beta2: float, eps: float, compiled: bool = False) -> Tensor:
    """Return the sums [2] of g^2 / max(v', eps^2), v' = beta2 v + (1 - beta2) g^2, and of g^2.

    Reads g and v once, and leaves them: the fused kernel that follows updates v. No host sync.
    """
    if g.numel() == 0:
        return g.new_zeros(2)
    g, v = g.reshape(-1), v.reshape(-1)
    if compiled:
        sums: Tensor = _one_pass()(g, v, _number(beta2), _number(eps**2))
        return sums
    # v' / beta2 takes one operation instead of two; at the first step beta2 is 0, and v' is g^2.
    scale = beta2 or 1.0
    chunk = CHUNK if g.device.type == "cpu" else g.numel()
    scratch = g.new_empty(min(chunk, g.numel()))
    ratios, squares = [], []
    for g_, v_ in zip(g.split(chunk), v.split(chunk), strict=True):
        x = scratch[: g_.numel()]
        if beta2:
            torch.addcmul(v_, g_, g_, value=(1 - beta2) / beta2, out=x)
        else:
            torch.mul(g_, g_, out=x)
        x.clamp_min_(eps**2 / scale)
        torch.div(g_, x, out=x)
        ratios.append(torch.dot(x, g_))
        squares.append(torch.dot(g_, g_))
    return torch.stack([torch.stack(ratios).sum() / scale, torch.stack(squares).sum()])


@functools.lru_cache(maxsize=8)
def _number(x: float) -> Tensor:
    """Return a number as a tensor: it changes with the step, and would be compiled in otherwise."""
    return torch.tensor(x)


@functools.lru_cache(maxsize=8)
def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Return constants as a float32 tensor: copying them at every step would be a sync."""
    return torch.tensor(numbers, dtype=torch.float32, device=device)


@functools.cache
def _one_pass() -> Callable[..., Tensor]:
    """Return both sums as one generated loop, for tensors of any size."""

    def one_pass(g: Tensor, v: Tensor, beta2: Tensor, least: Tensor) -> Tensor:
        squares = g * g
        ratios = squares / (beta2 * v + (1 - beta2) * squares).clamp_min(least)
        return torch.stack([ratios.sum(), squares.sum()])

    compiled: Callable[..., Tensor] = torch.compile(one_pass, dynamic=True, fullgraph=True)
    return compiled


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into matrices, which decay, and norms and biases, which do not (A.3)."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay, "decays": True},
        {"params": vectors, "weight_decay": 0.0, "decays": False},
    ]


def _coefficients(group: dict[str, Any], step: float) -> Coefficients:
    beta1, beta2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in group["betas"])
    return Coefficients(beta1, beta2, group["eps"], float(group["lr"]), decay_per_lr(group))


def decay_per_lr(group: dict[str, Any]) -> float:
    """Return the share of itself that a weight loses per step and unit of learning rate."""
    return float(group["weight_decay"] / group["lr_max"]) if group["decays"] else 0.0


def _check(group: dict[str, Any]) -> None:
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas are {group['betas']}; both must be in [0, 1)")
    if group["lr_max"] <= 0:
        raise ValueError(f"lr_max is {group['lr_max']}; it must be positive")
    if group["eps"] <= 0:
        raise ValueError(f"eps is {group['eps']}; it must be positive")
    for name in ("lr", "weight_decay"):
        if group[name] < 0:
            raise ValueError(f"{name} is {group[name]}; it must not be negative")
