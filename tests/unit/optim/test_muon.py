"""Muon against torch.optim.Muon, on matrices that hold several, and in training."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from restomod.optim import muon
from restomod.optim.muon import Muon, newton_schulz, orthogonalise
from restomod.optim.stable_adamw import StableAdamW

LR, PEAK, DECAY = 3e-3, 1e-2, 0.1


def matrices(*shapes: tuple[int, int], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(50 + step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)


def torch_muon(parameters: list[nn.Parameter]) -> torch.optim.Muon:
    return torch.optim.Muon(
        parameters, lr=LR, weight_decay=DECAY / PEAK, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )


def ours(parameters: list[nn.Parameter], parts: int) -> Muon:
    groups = [{"params": parameters, "parts": parts}]
    return Muon(groups, lr=LR, lr_max=PEAK, weight_decay=DECAY)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orthogonalise in the precision of torch.optim.Muon."""
    exact = newton_schulz
    monkeypatch.setattr(muon, "newton_schulz", lambda x: exact(x.bfloat16()))


@pytest.mark.usefixtures("bfloat16")
def test_whole_matrices_equal_torch_optim_muon() -> None:
    shapes = [(24, 16), (16, 40), (24, 16), (16, 16)]
    mine, theirs = matrices(*shapes), matrices(*shapes)
    opt, reference = ours(mine, 1), torch_muon(theirs)
    for step in range(5):
        set_gradients(mine, step)
        set_gradients(theirs, step)
        opt.step()
        reference.step()
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=LR * 3e-2)
            torch.testing.assert_close(
                opt.state[a]["momentum_buffer"], reference.state[b]["momentum_buffer"]
            )


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_equal_matrices_of_their_own(parts: int) -> None:
    (whole,) = matrices((24, 16))
    pieces = [nn.Parameter(piece.clone()) for piece in whole.detach().chunk(parts)]
    opt, reference = ours([whole], parts), torch_muon(pieces)
    for step in range(3):
        set_gradients([whole], step)
        assert whole.grad is not None
        for piece, gradient in zip(pieces, whole.grad.chunk(parts), strict=True):
            piece.grad = gradient.clone()
        opt.step()
        reference.step()
    torch.testing.assert_close(whole, torch.cat(pieces), rtol=1e-5, atol=LR * 3e-2)


@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (20, 8)])
def test_orthogonalised_matrices_keep_their_singular_vectors(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    u, s, vt = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    u, vt, s = u.double(), vt.double(), s.double().clamp_min(0.5)
    (result,) = newton_schulz((u * s @ vt)[None])
    turned = u.mT @ result @ vt.mT
    torch.testing.assert_close(turned, turned.diagonal().diag(), rtol=0, atol=1e-5)
    assert (turned.diagonal() > 0.6).all()
    assert (turned.diagonal() < 1.25).all()


def test_batches_do_not_mix_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [p.detach() for p in matrices((6, 4), (4, 4), (6, 4), (6, 4), (4, 4))]
    alone = [orthogonalise([matrix], 2)[0] for matrix in given]
    for most in (1, 48, 1 << 24):
        monkeypatch.setattr(muon, "BATCH_ELEMENTS", most)
        for a, b in zip(orthogonalise(given, 2), alone, strict=True):
            torch.testing.assert_close(a, b)


def test_an_update_has_adamws_usual_size() -> None:
    for shape in ((64, 64), (32, 128), (192, 48)):
        (p,) = matrices(shape)
        before = p.detach().clone()
        opt = Muon([{"params": [p], "parts": 1}], lr=1.0, lr_max=1.0)
        set_gradients([p], 0)
        opt.step()
        assert 0.15 < float((p.detach() - before).square().mean().sqrt()) < 0.22


class Network(nn.Module):
    """Two hidden layers between an embedding and an output, as an encoder has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)
        self.first = nn.Linear(16, 32)
        self.second = nn.Linear(32, 16)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.second(torch.tanh(self.first(self.embedding(ids))))
        return x @ self.embedding.weight.mT


def optimizer(network: Network, lr: float = 1e-2) -> Muon:
    groups = [
        {"params": [network.embedding.weight, network.first.bias, network.second.bias]},
        {"params": [network.first.weight], "parts": 2},
        {"params": [network.second.weight], "parts": 1},
    ]
    return Muon(groups, lr=lr, lr_max=lr)


def train(network: Network, opt: StableAdamW, steps: range) -> float:
    ids = torch.arange(50)
    targets = (ids * 7 + 3) % 50
    for _ in steps:
        opt.zero_grad()
        loss = nn.functional.cross_entropy(network(ids), targets)
        loss.backward()
        opt.step()
    return float(loss.detach())


def test_training_converges() -> None:
    network = Network()
    opt = optimizer(network)
    assert train(network, opt, range(1)) > 3
    assert train(network, opt, range(150)) < 0.1


def test_distributed_checkpoint_takes_both_rules_states_by_name() -> None:
    network = Network()
    opt = optimizer(network)
    train(network, opt, range(3))
    state = copy.deepcopy(get_optimizer_state_dict(network, opt))
    assert set(state["state"]["first.weight"]) == {"momentum_buffer"}
    assert set(state["state"]["embedding.weight"]) == {"step", "exp_avg", "exp_avg_sq"}

    again = Network()
    again.load_state_dict(network.state_dict())
    new_opt = optimizer(again)
    set_optimizer_state_dict(again, new_opt, state)
    train(network, opt, range(3))
    train(again, new_opt, range(3))
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("shape", "parts", "momentum", "named"),
    [((6, 4), 4, 0.9, "4 matrices"), ((6,), 1, 0.9, "1 matrices"), ((6, 4), 1, 1.0, "momentum")],
)
def test_what_cannot_be_is_refused(
    shape: tuple[int, ...], parts: int, momentum: float, named: str
) -> None:
    group = {"params": [nn.Parameter(torch.zeros(shape))], "parts": parts}
    with pytest.raises(ValueError, match=named):
        Muon([group], lr=1e-3, lr_max=1e-3, momentum=momentum)
