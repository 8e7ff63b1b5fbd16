"""Updates that are skipped, the statistics of a step, and groups whose numbers change."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from restomod.optim.adamw import AdamW
from restomod.optim.muon import Muon
from restomod.optim.stable_adamw import StableAdamW

SHAPES = [(6, 4), (4,), (5, 3)]


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(10 + step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)


def stable(parameters: list[nn.Parameter]) -> StableAdamW:
    return StableAdamW(parameters, lr=1e-2, lr_max=1e-2, weight_decay=1e-2)


def clipping(parameters: list[nn.Parameter]) -> StableAdamW:
    return AdamW(parameters, lr=1e-2, lr_max=1e-2, weight_decay=1e-2, clip_norm=1.0)


def muon(parameters: list[nn.Parameter]) -> StableAdamW:
    groups = [
        {"params": parameters[:1], "parts": 3},
        {"params": parameters[1:2]},
        {"params": parameters[2:], "parts": 1},
    ]
    return Muon(groups, lr=1e-2, lr_max=1e-2, weight_decay=1e-2)


def everything(parameters: list[nn.Parameter], opt: StableAdamW) -> list[Tensor]:
    moments = [v for state in opt.state.values() for k, v in state.items() if k != "step"]
    return [t.detach().clone() for t in [*parameters, *moments]]


Build = Callable[[list[nn.Parameter]], StableAdamW]
every = pytest.mark.parametrize("build", [stable, clipping, muon])


@every
@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan, 1e25])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_gradient_that_is_not_finite_changes_no_bit(
    build: Build, wrong: float, place: int
) -> None:
    parameters = weights()
    opt = build(parameters)
    for step in range(2):
        set_gradients(parameters, step)
        opt.step()
        assert opt.skipped == 0
    before = everything(parameters, opt)
    gradient = parameters[place].grad
    assert gradient is not None
    gradient.view(-1)[1] = wrong
    opt.step()
    assert opt.skipped == 1
    assert opt.skipped.dtype == torch.float32
    assert not opt.statistics().gradient_norm.isfinite()
    after = everything(parameters, opt)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    set_gradients(parameters, 5)
    opt.step()
    assert opt.skipped == 0
    after = everything(parameters, opt)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@every
@pytest.mark.parametrize("veto", [1.0, 0.25, torch.nan])
def test_a_vetoed_update_changes_no_bit(build: Build, veto: float) -> None:
    parameters = weights()
    opt = build(parameters)
    set_gradients(parameters, 0)
    opt.veto = torch.tensor(0.0)
    opt.step()
    assert opt.skipped == 0
    before = everything(parameters, opt)
    set_gradients(parameters, 1)
    opt.veto = torch.tensor(veto)
    opt.step()
    assert opt.skipped == 1
    after = everything(parameters, opt)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    opt.veto = None
    opt.step()
    assert opt.skipped == 0


@pytest.mark.parametrize("skips", [1, 2, 20])
def test_skipping_first_steps_only_shortens_the_next(skips: int) -> None:
    """The state's step counts attempts: the average forgets too little, and the clip sees that."""
    p = nn.Parameter(torch.zeros(1000))
    opt = StableAdamW([p], lr=1e-2, lr_max=1e-2, eps=1e-12)
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(1000, generator=generator)
    opt.veto = torch.tensor(1.0)
    for _ in range(skips):
        p.grad = gradient.clone()
        opt.step()
    assert torch.equal(p.detach(), torch.zeros(1000))
    opt.veto = torch.tensor(0.0)
    opt.step()
    assert float(opt.state[p]["step"]) == skips + 1
    expected = 1e-2 * (1 - 0.9) / (1 - 0.9 ** (skips + 1))
    torch.testing.assert_close(p.detach(), -expected * gradient.sign())
    lengths = []
    for _ in range(40):
        before = p.detach().clone()
        p.grad = gradient.clone()
        opt.step()
        lengths.append(float((p.detach() - before).abs().max()))
    assert max(lengths) <= 1e-2 * (1 + 1e-5)
    assert lengths[-1] > 0.95e-2


def test_statistics_are_of_all_groups_together() -> None:
    a, b, c, still = (nn.Parameter(torch.zeros(n)) for n in (100, 10, 1, 7))
    opt = StableAdamW([{"params": [a, b]}, {"params": [c, still]}], lr=1e-3, lr_max=1e-3)
    for step, scales in enumerate([(1.0, 1.0, 1.0), (1.0, 3.0, 0.1)]):
        for p, scale in zip((a, b, c), scales, strict=True):
            p.grad = torch.full_like(p, scale)
        opt.step()
        statistics = opt.statistics()
        norm = sum(p.numel() * s * s for p, s in zip((a, b, c), scales, strict=True)) ** 0.5
        assert float(statistics.gradient_norm) == pytest.approx(norm)
        if step == 0:
            assert float(statistics.largest_rms) == pytest.approx(1)
    # v of b is 1 after the first step, and 9 comes: weights .98 and .02, without their bias.
    old = 0.98 * 0.02 / (1 - 0.98**2)
    assert float(statistics.largest_rms) == pytest.approx((9 / (old + (1 - old) * 9)) ** 0.5)
    assert float(statistics.clip_rate) == pytest.approx(1 / 3)


def test_muon_counts_in_the_norm_and_not_among_the_clipped() -> None:
    parameters = weights()
    opt = muon(parameters)
    for scale in (1.0, 30.0):
        for p in parameters:
            p.grad = torch.full_like(p, scale)
        opt.step()
    assert float(opt.statistics().gradient_norm) == pytest.approx(30 * (24 + 4 + 15) ** 0.5)
    assert float(opt.statistics().clip_rate) == 1
    assert float(opt.statistics().largest_rms) > 1


def test_statistics_before_the_first_step_are_zero() -> None:
    assert [float(x) for x in stable(weights()).statistics()] == [0, 0, 0]


@every
def test_numbers_of_a_group_may_change_at_any_step(build: Build) -> None:
    parameters = weights()
    opt = build(parameters)
    set_gradients(parameters, 0)
    opt.step()
    for lr, lr_max, decay in ((1e-2, 2e-2, 0.1), (5e-3, 5e-3, 0.3), (1e-3, 4e-3, 0.0)):
        with torch.no_grad():
            for p in parameters:
                p.fill_(1.0)
        for moments in opt.state.values():
            for key, moment in moments.items():
                if key != "step":
                    moment.zero_()
        for group in opt.param_groups:
            group |= {"lr": lr, "lr_max": lr_max, "weight_decay": decay}
        for p in parameters:
            p.grad = torch.zeros_like(p)
        opt.step()
        for p in parameters:
            torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - decay * lr / lr_max))


@every
def test_a_group_that_does_not_decay_ignores_its_weight_decay(build: Build) -> None:
    parameters = weights()
    opt = build(parameters)
    before = [p.detach().clone() for p in parameters]
    for group in opt.param_groups:
        group["decays"] = False
    for p in parameters:
        p.grad = torch.zeros_like(p)
    opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
