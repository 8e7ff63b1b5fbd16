"""From the recipe's section to groups of the model's parameters."""

import pytest
import torch

from restomod.config import OptimizerConfig
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.optim.adamw import AdamW
from restomod.optim.build import build_optimizer
from restomod.optim.muon import Muon
from restomod.optim.stable_adamw import StableAdamW

TINY = EncoderConfig(
    layers=2, hidden_size=32, heads=2, intermediate_size=48, vocab_size=90,
    pad_id=0, cls_id=1, sep_id=2, attention_bias=True, norm_bias=True,
)  # fmt: skip


def by_name(model: MaskedLM, opt: torch.optim.Optimizer) -> dict[str, dict[str, object]]:
    names = {id(p): name for name, p in model.named_parameters()}
    members = [
        (names[id(p)], {k: v for k, v in group.items() if k != "params"})
        for group in opt.param_groups
        for p in group["params"]
    ]
    assert sorted(name for name, _ in members) == sorted(names.values())  # each in one group
    return dict(members)


@pytest.mark.parametrize("name", ["stable_adamw", "adamw", "muon"])
def test_the_recipes_numbers_reach_every_group(name: str) -> None:
    model = MaskedLM(TINY)
    config = OptimizerConfig(
        name=name, lr=2e-3, betas=[0.8, 0.9], eps=1e-7, weight_decay=0.3, momentum=0.7
    )
    opt = build_optimizer(model, config, compiled=False)
    assert type(opt) is {"stable_adamw": StableAdamW, "adamw": AdamW, "muon": Muon}[name]
    for parameter, group in by_name(model, opt).items():
        decays = not (parameter.endswith("bias") or "norm" in parameter)
        assert group["decays"] == decays, parameter
        assert group["weight_decay"] == (0.3 if decays else 0.0), parameter
        assert (group["lr"], group["lr_max"]) == (2e-3, 2e-3)
        assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-7)
        if name == "muon":
            assert group["momentum"] == 0.7


def test_the_recipes_clip_norm_is_adamws() -> None:
    model = MaskedLM(TINY)
    opt = build_optimizer(model, OptimizerConfig(name="adamw", clip_norm=0.5), compiled=False)
    for scale, clipped in ((1e-4, 0.0), (1.0, 1.0)):
        for p in model.parameters():
            p.grad = torch.full_like(p, scale)
        opt.step()
        assert float(opt.statistics().clip_rate) == clipped


def test_muon_takes_hidden_matrices_by_their_parts() -> None:
    model = MaskedLM(TINY)
    opt = build_optimizer(model, OptimizerConfig(name="muon"), compiled=False)
    parts = {name: group["parts"] for name, group in by_name(model, opt).items()}
    matrices = {"attn.Wqkv": 3, "attn.Wo": 1, "mlp.Wi": 2, "mlp.Wo": 1}
    expected = {
        f"encoder.layers.{layer}.{matrix}.weight": n
        for layer in range(2)
        for matrix, n in matrices.items()
    } | {"head.dense.weight": 1}
    assert {name: n for name, n in parts.items() if n} == expected


@pytest.mark.parametrize("name", ["stable_adamw", "adamw", "muon"])
def test_a_step_follows_the_gradients_down(name: str) -> None:
    model = MaskedLM(TINY)
    opt = build_optimizer(model, OptimizerConfig(name=name), compiled=False)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    for n, p in enumerate(model.parameters()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(n))
    opt.step()
    for key, p in model.named_parameters():
        assert p.grad is not None
        assert float(((p.detach() - before[key]) * p.grad).sum()) < 0, key
