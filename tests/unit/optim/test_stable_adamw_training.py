"""StableAdamW where training uses it: large tensors, real models, checkpoints, without syncs."""

import copy

import optimi
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.optim.stable_adamw import CHUNK, StableAdamW, parameter_groups, update_sums

SHAPES = [(48, 33), (17,), (1,), (CHUNK + 5,)]
TINY = EncoderConfig(
    layers=2, hidden_size=32, heads=2, intermediate_size=48, vocab_size=90,
    pad_id=0, cls_id=1, sep_id=2,
)  # fmt: skip


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def spiky_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    scale = 50.0 if step % 4 == 3 else 0.1
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator) * scale


@pytest.mark.parametrize(("decay", "compiled"), [(0.0, False), (1e-2, False), (1e-2, True)])
@pytest.mark.filterwarnings("ignore:You are using weight_decay")
def test_equals_torch_optimi_while_the_clip_acts_on_every_shape(
    decay: float, compiled: bool
) -> None:
    ours, theirs = weights(), weights()
    mine = StableAdamW(ours, lr=1e-2, lr_max=1e-2, weight_decay=decay, compiled=compiled)
    reference = optimi.StableAdamW(
        theirs, lr=1e-2, betas=(0.9, 0.98), weight_decay=decay, decouple_lr=True, max_lr=1e-2,
        triton=False, foreach=False,
    )  # fmt: skip
    clipped = [0] * len(ours)
    for step in range(10):
        for group in (*mine.param_groups, *reference.param_groups):
            group["lr"] = 1e-2 * (step + 1) / 10
        spiky_gradients(ours, step)
        spiky_gradients(theirs, step)
        if step:
            beta2 = 0.98 * (1 - 0.98**step) / (1 - 0.98 ** (step + 1))
            for i, p in enumerate(ours):
                ratios, _ = update_sums(p.grad, mine.state[p]["exp_avg_sq"], beta2, 1e-6)
                clipped[i] += bool((ratios / p.numel()).sqrt() > 1.2)
        mine.step()
        reference.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
    assert all(clipped)


def test_a_step_reads_no_number_but_its_own_step_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = weights()
    opt = StableAdamW(parameters, lr=1e-2, lr_max=1e-2)
    spiky_gradients(parameters, 0)
    opt.step()
    counters = {id(state["step"]) for state in opt.state.values()}
    item = torch.Tensor.item

    def guarded(self: torch.Tensor) -> float:
        assert id(self) in counters
        assert self.device.type == "cpu"
        return item(self)

    def refuse(*_: object) -> None:
        raise AssertionError("host sync")

    monkeypatch.setattr(torch.Tensor, "item", guarded)
    for name in ("__float__", "__bool__", "__int__", "tolist", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    spiky_gradients(parameters, 1)
    opt.step()


def test_every_parameter_of_the_model_is_in_one_group_and_vectors_do_not_decay() -> None:
    model = MaskedLM(TINY)
    groups = parameter_groups(model, 0.5)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, p in model.named_parameters():
        assert decay[id(p)] == (0.0 if "norm" in name or name.endswith("bias") else 0.5), name


def test_distributed_checkpoint_round_trip_keeps_every_bit() -> None:
    def built() -> tuple[MaskedLM, StableAdamW]:
        torch.manual_seed(0)
        model = MaskedLM(TINY)
        return model, StableAdamW(parameter_groups(model, 1e-2), lr=1e-3, lr_max=2e-3)

    model, opt = built()
    for n in range(3):
        spiky_gradients(list(model.parameters()), n)
        opt.step()
    state = copy.deepcopy(get_optimizer_state_dict(model, opt))
    other, again = built()
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, again, copy.deepcopy(state))
    restored = get_optimizer_state_dict(other, again)
    assert restored["param_groups"] == state["param_groups"]
    for name, entry in state["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, restored["state"][name][key]), (name, key)
            assert value.device == restored["state"][name][key].device
