"""AdamW against torch's, with and without gradient clipping."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from restomod.optim import stable_adamw
from restomod.optim.adamw import AdamW
from restomod.optim.stable_adamw import StableAdamW

SHAPES = [(64, 32), (3, 5, 7), (32,), (1,), (), (2000,)]
LR, DECAY = 1e-2, 1e-2


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(parameters: list[nn.Parameter], step: int) -> float:
    """Set gradients whose scale jumps; return their norm."""
    generator = torch.Generator().manual_seed(100 + step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (step % 3 - 2)
    gradients = [p.grad for p in parameters if p.grad is not None]
    return float(torch.cat([g.flatten() for g in gradients]).norm())


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_weights_equal_torchs_adamw(clip_norm: float) -> None:
    ours, theirs = weights(), weights()
    mine = AdamW(ours, lr=LR, lr_max=LR, betas=(0.8, 0.97), weight_decay=DECAY, clip_norm=clip_norm)
    reference = torch.optim.AdamW(
        theirs, lr=LR, betas=(0.8, 0.97), eps=1e-6, weight_decay=DECAY / LR, foreach=False
    )
    clipped = []
    for step in range(9):
        for group in (*mine.param_groups, *reference.param_groups):
            group["lr"] = LR * (step + 1) / 9
        norm = set_gradients(ours, step)
        set_gradients(theirs, step)
        if clip_norm:
            clip_grad_norm_(theirs, clip_norm)
        mine.step()
        reference.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
        assert float(mine.statistics().gradient_norm) == pytest.approx(norm, rel=1e-5)
        assert float(mine.statistics().largest_rms) == 0
        clipped.append(float(mine.statistics().clip_rate))
    assert clipped == ([0.0, 1.0, 1.0] * 3 if clip_norm else [0.0] * 9)


def test_unlike_stable_adamw_a_gradient_that_leaps_is_not_clipped() -> None:
    """The state is the same until then: the optimizers differ in the clip alone."""
    ours, theirs = weights(), weights()
    mine = AdamW(ours, lr=LR, lr_max=LR)
    stable = StableAdamW(theirs, lr=LR, lr_max=LR)
    lengths = []
    for scale in (1e-4, 1e-4, 1.0):
        for parameters, optimizer in ((ours, mine), (theirs, stable)):
            before = [p.detach().clone() for p in parameters]
            for p in parameters:
                p.grad = torch.full_like(p, scale)
            optimizer.step()
            moves = [(p.detach() - b).abs() for p, b in zip(parameters, before, strict=True)]
            lengths.append(float(moves[0].mean()))
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)
    assert lengths[2] == pytest.approx(lengths[3], rel=1e-5)
    assert lengths[4] > 1.5 * lengths[5]


def test_it_reads_no_second_moment_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the sums of StableAdamW were read")

    monkeypatch.setattr(stable_adamw, "update_sums", refuse)
    parameters = weights()
    set_gradients(parameters, 0)
    AdamW(parameters, lr=LR, lr_max=LR, clip_norm=1.0).step()


def test_state_goes_on_where_it_was() -> None:
    ours, theirs = weights(), weights()
    straight = AdamW(ours, lr=LR, lr_max=LR, weight_decay=DECAY, clip_norm=0.5)
    broken = AdamW(theirs, lr=LR, lr_max=LR, weight_decay=DECAY, clip_norm=0.5)
    for step in range(6):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        straight.step()
        broken.step()
        if step in (1, 3):
            state = copy.deepcopy(broken.state_dict())
            broken = AdamW(theirs, lr=1.0, lr_max=1.0, clip_norm=0.5)
            broken.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_negative_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="clip_norm is -1"):
        AdamW(weights(), lr=LR, lr_max=LR, clip_norm=-1)
