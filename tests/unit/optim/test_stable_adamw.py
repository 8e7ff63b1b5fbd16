"""StableAdamW against torch-optimi's, and its state."""

import copy
import io

import optimi
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from restomod.optim import stable_adamw
from restomod.optim.stable_adamw import (
    StableAdamW,
    parameter_groups,
    update_sums,
)

SHAPES = [(64, 32), (3, 5, 7), (32,), (1,), (), (2000,)]


def weights(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    """Gradients whose scale jumps, so that the clip acts, with dead and tiny entries."""
    generator = torch.Generator().manual_seed(100 + step)
    for i, p in enumerate(parameters):
        gradient = torch.randn(p.shape, generator=generator) * 10.0 ** ((step + i) % 4 - 2)
        gradient.view(-1)[::3] *= 1e-6
        if p.numel() > 4:
            gradient.view(-1)[::4] = 0.0
        p.grad = gradient


def optimizer(parameters: list[nn.Parameter]) -> StableAdamW:
    return StableAdamW(parameters, lr=4e-3, lr_max=1e-2, weight_decay=1e-2)


@pytest.mark.parametrize("chunk", [1 << 20, 100])
@pytest.mark.filterwarnings("ignore:You are using weight_decay")
def test_weights_and_moments_equal_torch_optimi(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stable_adamw, "CHUNK", chunk)
    ours, theirs = weights(), weights()
    mine = optimizer(ours)
    reference = optimi.StableAdamW(
        theirs, lr=4e-3, betas=(0.9, 0.98), weight_decay=1e-2, decouple_lr=True, max_lr=1e-2,
        triton=False, foreach=False,
    )  # fmt: skip
    for step in range(12):
        for group in (*mine.param_groups, *reference.param_groups):
            group["lr"] = 1e-2 * (step + 1) / 12
        set_gradients(ours, step)
        set_gradients(theirs, step)
        mine.step()
        reference.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
            for moment in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(
                    mine.state[a][moment], reference.state[b][moment], rtol=1e-5, atol=1e-12
                )


def test_the_clip_divides_the_rate_by_the_rms() -> None:
    p = nn.Parameter(torch.zeros(1000))
    opt = StableAdamW([p], lr=1e-3, lr_max=1e-3)
    moves = []
    for scale in (1e-3, 1e-3, 1.0):
        before = p.detach().clone()
        p.grad = torch.full_like(p, scale)
        opt.step()
        moves.append(float((p.detach() - before).abs().mean()))
    v = opt.state[p]["exp_avg_sq"][0]
    m = opt.state[p]["exp_avg"][0]
    rms = 1.0 / v.sqrt()
    assert rms > 1.5
    assert moves[0] == pytest.approx(1e-3, rel=2e-3)  # eps is 1e-3 of the gradient
    assert moves[2] == pytest.approx(float(1e-3 / rms * m / v.sqrt()), rel=1e-4)


def test_weight_decay_is_relative_to_the_peak_rate() -> None:
    for lr, lost in ((1e-2, 0.01), (2.5e-3, 0.0025)):
        p = nn.Parameter(torch.ones(10))
        opt = StableAdamW([p], lr=lr, lr_max=1e-2, weight_decay=0.01)
        p.grad = torch.zeros(10)
        opt.step()
        torch.testing.assert_close(p.detach(), torch.full((10,), 1 - lost))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_ratio_bounds_the_divisor_by_eps(compiled: bool) -> None:
    g, v = torch.tensor([1e-7, 0.0, 3.0]), torch.tensor([1e-20, 0.0, 4.0])
    updated = (0.98 * v + 0.02 * g**2).clamp(min=1e-12)
    sums = update_sums(g, v, 0.98, 1e-6, compiled)
    torch.testing.assert_close(sums, torch.stack([(g**2 / updated).sum(), (g**2).sum()]))
    for size, beta2 in ((4, 0.0), (0, 0.9)):
        nothing = torch.zeros(size)
        assert torch.equal(update_sums(nothing, nothing, beta2, 1e-6, compiled), torch.zeros(2))


def test_the_compiled_sums_serve_every_size_and_step() -> None:
    torch._dynamo.utils.counters.clear()
    for size in range(2, 40):
        g, v = torch.randn(size), torch.rand(size)
        sums = update_sums(g, v, 1 - 1 / size, 1e-6, compiled=True)
        torch.testing.assert_close(sums, update_sums(g, v, 1 - 1 / size, 1e-6))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def run(parameters: list[nn.Parameter], opt: StableAdamW, steps: range) -> None:
    for step in steps:
        set_gradients(parameters, step)
        opt.step()


def test_training_resumed_twice_has_the_same_bits() -> None:
    straight = weights()
    run(straight, optimizer(straight), range(9))

    parameters = weights()
    opt = optimizer(parameters)
    for begin, end in ((0, 2), (2, 5), (5, 9)):
        run(parameters, opt, range(begin, end))
        file = io.BytesIO()
        torch.save({"opt": opt.state_dict(), "weights": parameters}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=False)
        parameters = weights(seed=1)
        with torch.no_grad():
            for p, old in zip(parameters, saved["weights"], strict=True):
                p.copy_(old)
        opt = optimizer(parameters)
        opt.load_state_dict(saved["opt"])
    for a, b in zip(straight, parameters, strict=True):
        assert torch.equal(a, b)


def test_distributed_checkpoint_takes_the_state_by_parameter_name() -> None:
    def built() -> tuple[nn.Module, StableAdamW]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        groups = parameter_groups(model, 1e-2)
        return model, StableAdamW(groups, lr=1e-3, lr_max=1e-3)

    def step(model: nn.Module, opt: StableAdamW) -> None:
        opt.zero_grad()
        model(torch.arange(12.0).view(3, 4)).square().mean().backward()
        opt.step()

    model, opt = built()
    step(model, opt)
    step(model, opt)
    state = copy.deepcopy(get_optimizer_state_dict(model, opt))
    assert set(state["state"]["0.weight"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert float(state["state"]["0.weight"]["step"]) == 2  # type: ignore[arg-type]

    again, new_opt = built()
    again.load_state_dict(model.state_dict())
    set_optimizer_state_dict(again, new_opt, state)
    step(model, opt)
    step(again, new_opt)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_parameters_without_gradients_wait() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    opt = optimizer([a, b])
    a.grad = torch.ones(3)
    opt.step()
    assert torch.equal(b, torch.ones(3))
    assert b not in opt.state
    b.grad = torch.ones(3)
    opt.step()
    assert float(opt.state[a]["step"]) == 2
    assert float(opt.state[b]["step"]) == 1


def test_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.LayerNorm(8))
    matrices, vectors = parameter_groups(model, 0.5)
    assert matrices["weight_decay"] == 0.5
    assert vectors["weight_decay"] == 0.0
    assert [tuple(p.shape) for p in matrices["params"]] == [(9, 4), (8, 4)]
    assert [tuple(p.shape) for p in vectors["params"]] == [(8,), (8,), (8,)]


@pytest.mark.parametrize(
    "wrong",
    [{"betas": (1.0, 0.9)}, {"lr": -1.0}, {"eps": -1.0}, {"weight_decay": -1.0}, {"lr_max": 0.0}],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StableAdamW(weights(), **({"lr": 1e-3, "lr_max": 1e-3} | wrong))  # type: ignore[arg-type]
