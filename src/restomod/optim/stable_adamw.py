"""StableAdamW (arXiv 2304.13013): AdamW that steps less where a gradient outgrows its average.

Enters: gradients of plain tensors. Leaves: new weights and moments. The mathematics is
torch-optimi's with `decouple_lr=True`, as ModernBERT trained; unlike it, no tensor costs a host
sync. Called by the trainer.

Per tensor of n elements, at step t, with bias correction folded into b1 and b2:

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
    rate = lr / max(1, rms),  rms = sqrt(mean(g^2 / max(v, eps^2)))
    w = w (1 - weight_decay rate / lr_max) - rate m / (sqrt(v) + eps)

The RMS reads g and v; then torch's fused AdamW kernel, told the rate, does the rest in one pass.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 1 << 20  # elements that the CPU reads at a time, so that intermediate results stay in cache


@dataclass(frozen=True)
class _Coefficients:
    """Numbers of one step of one group."""

    beta1: float
    beta2: float
    eps: float
    lr: float
    decay_per_lr: float


class StableAdamW(torch.optim.Optimizer):
    """AdamW with the update clipping of Adafactor and fully decoupled weight decay.

    `lr_max` is the peak of the phase's learning-rate schedule: at the peak a weight loses
    `weight_decay` of itself per step, and less in proportion below it.
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
        }
        super().__init__(params, defaults)
        self._compiled = compiled
        self._late_steps: dict[torch.device, Tensor] = {}
        for group in self.param_groups:
            _check(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_step: dict[float, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                by_step.setdefault(state["step"].item(), []).append(parameter)
            for step, parameters in by_step.items():
                self._update(parameters, _coefficients(group, step))
        return loss

    def _update(self, parameters: list[Tensor], c: _Coefficients) -> None:
        for w in parameters:
            assert w.grad is not None
            state = self.state[w]
            rms = update_rms(w.grad, state["exp_avg_sq"], c.beta2, c.eps, self._compiled)
            rate = c.lr / rms.clamp_min(1.0)
            torch._fused_adamw_(
                [w],
                [w.grad],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [self._settled(w.device)],
                lr=rate,
                beta1=c.beta1,
                beta2=c.beta2,
                weight_decay=c.decay_per_lr,
                eps=c.eps,
                amsgrad=False,
                maximize=False,
            )

    def _settled(self, device: torch.device) -> Tensor:
        """Return a step so late that the kernel's bias correction is 1: ours is in the betas."""
        if device not in self._late_steps:
            self._late_steps[device] = torch.tensor(1e9, device=device)
        return self._late_steps[device]


def update_rms(g: Tensor, v: Tensor, beta2: float, eps: float, compiled: bool = False) -> Tensor:
    """Return sqrt(mean(g^2 / max(v', eps^2))), v' = beta2 v + (1 - beta2) g^2, with no host sync.

    Reads g and v once, and leaves them: the fused kernel that follows updates v.
    """
    if g.numel() == 0:
        return g.new_zeros(())
    g, v = g.reshape(-1), v.reshape(-1)
    if compiled:
        rms: Tensor = _one_pass()(g, v, _number(beta2), _number(eps**2))
        return rms
    return (_sum(g, v, beta2, eps) / g.numel()).sqrt()


def _sum(g: Tensor, v: Tensor, beta2: float, eps: float) -> Tensor:
    # v' / beta2 takes one operation instead of two; at the first step beta2 is 0, and v' is g^2.
    scale = beta2 or 1.0
    chunk = CHUNK if g.device.type == "cpu" else g.numel()
    scratch = g.new_empty(min(chunk, g.numel()))
    sums = []
    for g_, v_ in zip(g.split(chunk), v.split(chunk), strict=True):
        x = scratch[: g_.numel()]
        if beta2:
            torch.addcmul(v_, g_, g_, value=(1 - beta2) / beta2, out=x)
        else:
            torch.mul(g_, g_, out=x)
        x.clamp_min_(eps**2 / scale)
        torch.div(g_, x, out=x)
        sums.append(torch.dot(x, g_))
    return torch.stack(sums).sum() / scale


@functools.lru_cache(maxsize=8)
def _number(x: float) -> Tensor:
    """Return a number as a tensor: it changes with the step, and would be compiled in otherwise."""
    return torch.tensor(x)


@functools.cache
def _one_pass() -> Callable[..., Tensor]:
    """Return the RMS as one generated loop, for tensors of any size."""

    def one_pass(g: Tensor, v: Tensor, beta2: Tensor, least: Tensor) -> Tensor:
        squares = g * g
        return (squares / (beta2 * v + (1 - beta2) * squares).clamp_min(least)).mean().sqrt()

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


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, as a tensor on their device: no host sync."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return nn.utils.get_total_norm(gradients)


def _coefficients(group: dict[str, Any], step: float) -> _Coefficients:
    beta1, beta2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in group["betas"])
    return _Coefficients(
        beta1, beta2, group["eps"], float(group["lr"]), group["weight_decay"] / group["lr_max"]
    )


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
