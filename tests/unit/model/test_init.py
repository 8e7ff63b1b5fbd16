"""Initial weights."""

import math
from dataclasses import replace

import pytest
import torch

from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.init import initialize, set_decoder_bias

CONFIG = EncoderConfig(
    layers=3, hidden_size=128, heads=2, intermediate_size=96, vocab_size=500,
    pad_id=0, cls_id=1, sep_id=2,
)  # fmt: skip


def initialized(seed: int = 0) -> MaskedLM:
    model = MaskedLM(CONFIG)
    initialize(model, seed)
    return model


@pytest.mark.parametrize("biases", [False, True])
def test_every_parameter_has_its_distribution(biases: bool) -> None:
    # A normal truncated at two deviations keeps 0.8796 of its standard deviation, and has 71.52 %
    # within one.
    switches = ("norm_bias", "attention_bias", "mlp_bias", "head_bias", "decoder_bias")
    model = MaskedLM(replace(CONFIG, **dict.fromkeys(switches, biases)))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    initialize(model, 0)
    seen = set()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            seen.add("bias")
            assert not parameter.any(), name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            std = 0.02 / math.sqrt(6) if ".Wo." in name else 0.02
            assert parameter.abs().max() <= 2 * std * (1 + 1e-6), name
            assert parameter.abs().max() > 1.9 * std, name
            assert abs(float(parameter.detach().std()) / (0.8796 * std) - 1) < 0.03, name
            assert abs(float(parameter.detach().mean())) < 0.05 * std, name
            within = (parameter.abs() < std).float().mean()
            assert abs(float(within) - 0.7152) < 0.02, name
    assert seen == ({"bias"} if biases else set())


def test_weights_depend_on_seed_and_name_alone() -> None:
    torch.manual_seed(0)
    first, state = initialized().state_dict(), torch.get_rng_state()
    torch.manual_seed(1)
    deeper = MaskedLM(EncoderConfig(**(vars(CONFIG) | {"layers": 4})))
    initialize(deeper, 0)
    for name, tensor in first.items():
        if "Wo" not in name:  # their scale depends on the depth
            assert torch.equal(deeper.state_dict()[name], tensor), name
    assert not torch.equal(
        initialized(1).encoder.embedding.weight, first["encoder.embedding.weight"]
    )
    assert not torch.equal(
        first["encoder.layers.0.attn.Wqkv.weight"], first["encoder.layers.1.attn.Wqkv.weight"]
    )
    torch.manual_seed(0)
    MaskedLM(CONFIG)
    model_only = torch.get_rng_state()
    assert torch.equal(state, model_only)  # initialize itself drew nothing


def test_the_first_loss_is_the_unigram_loss_with_a_set_bias() -> None:
    model = initialized()
    probabilities = torch.rand(500, generator=torch.Generator().manual_seed(0)).pow(4)
    probabilities /= probabilities.sum()
    set_decoder_bias(model, probabilities.log())
    ids = torch.multinomial(
        probabilities, 400, replacement=True, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        loss = model.mlm_loss(ids, ids, torch.tensor([0, 400]))
    assert abs(float(loss) + float(probabilities.log()[ids].mean())) < 0.1
    with pytest.raises(ValueError, match="expected \\(500,\\)"):
        set_decoder_bias(model, torch.zeros(3))
