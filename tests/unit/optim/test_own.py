"""Rules of the user's own, with torch's SGD and AdamW as examples."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from restomod.errors import UserError
from restomod.optim.own import Own, Rule

SHAPES = [(6, 4), (4,), (5, 3), ()]
LR = 1e-2


@dataclass
class Momentum:
    """torch.optim.SGD's."""

    moments: ClassVar = ("buffer",)
    decay: float = 0.9

    def __call__(self, gradient: Tensor, moments: dict[str, Tensor], step: int) -> Tensor:
        return moments["buffer"].mul_(self.decay).add_(gradient)


@dataclass
class Adam:
    """Bias correction needs the number of the step."""

    moments: ClassVar = ("mean", "square")

    def __call__(self, gradient: Tensor, moments: dict[str, Tensor], step: int) -> Tensor:
        mean = moments["mean"].lerp_(gradient, 0.1) / (1 - 0.9**step)
        square = moments["square"].lerp_(gradient.square(), 0.01) / (1 - 0.99**step)
        return mean / (square.sqrt() + 1e-8)


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(10 + step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)


def own(parameters: list[nn.Parameter], rule: Rule, decay: float = 0.0) -> Own:
    groups = [{"params": parameters, "weight_decay": decay, "decays": True}]
    return Own(groups, lr=LR, lr_max=LR, rule=rule)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_rules_do_what_torchs_optimizers_do(kind: str) -> None:
    ours, theirs = weights(), weights()
    reference: torch.optim.Optimizer
    if kind == "sgd":
        mine = own(ours, Momentum(0.8))
        reference = torch.optim.SGD(theirs, lr=LR, momentum=0.8)
    else:
        mine = own(ours, Adam(), decay=3e-3)
        reference = torch.optim.AdamW(theirs, lr=LR, betas=(0.9, 0.99), weight_decay=0.3)
    for step in range(6):
        for group in (*mine.param_groups, *reference.param_groups):
            group["lr"] = LR * (step + 1) / 6
        set_gradients(ours, step)
        set_gradients(theirs, step)
        mine.step()
        reference.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
    norm = torch.cat([p.grad.flatten() for p in ours if p.grad is not None]).norm()
    assert float(mine.statistics().gradient_norm) == pytest.approx(float(norm))
    assert float(mine.statistics().clip_rate) == 0


@pytest.mark.parametrize("why", ["nan", "veto"])
def test_a_skipped_step_changes_no_bit_of_weights_and_moments(why: str) -> None:
    parameters = weights()
    mine = own(parameters, Adam(), decay=1e-2)
    set_gradients(parameters, 0)
    mine.step()
    everything = [*parameters, *(mine.state[p][m] for p in parameters for m in Adam.moments)]
    before = [tensor.detach().clone() for tensor in everything]
    set_gradients(parameters, 1)
    if why == "nan":
        gradient = parameters[0].grad
        assert gradient is not None
        gradient[0, 0] = torch.nan
    else:
        mine.veto = torch.tensor(1.0)
    mine.step()
    assert mine.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, everything, strict=True))
    mine.veto = None
    set_gradients(parameters, 2)
    mine.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, everything, strict=True))


@dataclass
class Odd:
    """Returns what is no direction."""

    moments: ClassVar = ()
    wrong: str = "sum"

    def __call__(self, gradient: Tensor, moments: dict[str, Tensor], step: int) -> Tensor:
        return gradient.sum() if self.wrong == "sum" else None  # type: ignore[return-value]


def test_a_direction_of_another_shape_is_refused() -> None:
    for wrong, said in (("sum", r"a tensor of shape \[\]"), ("none", "a NoneType")):
        parameters = weights()
        set_gradients(parameters, 0)
        with pytest.raises(UserError, match=f"Odd: returned {said} for a gradient of shape"):
            own(parameters, Odd(wrong)).step()
