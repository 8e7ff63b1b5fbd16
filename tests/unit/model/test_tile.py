"""Centre tiling with wraparound."""

from dataclasses import replace

import pytest
import torch

from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.init import initialize
from restomod.model.tile import layer_map, tile, wrap

SMALL = EncoderConfig(
    layers=3, hidden_size=12, heads=3, intermediate_size=5, vocab_size=20, local_window=8,
    norm_bias=True, attention_bias=True, mlp_bias=True, head_bias=True,
)  # fmt: skip


def build(config: EncoderConfig = SMALL) -> MaskedLM:
    model = MaskedLM(config)
    initialize(model, seed=3)
    with torch.no_grad():
        for n, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n)))
    return model


@pytest.mark.parametrize(
    ("old", "new", "taken"),
    [
        (3, 8, [1, 2, 0, 1, 2, 0, 1, 2]),
        (3, 4, [0, 1, 2, 0]),
        (4, 7, [3, 0, 1, 2, 3, 0, 1]),
        (2, 9, [1, 0, 1, 0, 1, 0, 1, 0, 1]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_the_old_values_lie_in_the_middle_and_wrap_around(
    old: int, new: int, taken: list[int]
) -> None:
    assert wrap(old, new).tolist() == taken


def test_large_takes_layers_of_base() -> None:
    mapped = layer_map(22, 28)
    assert mapped[:6] == [0, 1, 2, 2, 3, 4]
    assert mapped[-1] == 21
    assert sorted(set(mapped)) == list(range(22))
    assert layer_map(1, 4) == [0, 0, 0, 0]  # the formula alone would give 1 for the last


def test_heads_projections_and_halves_stay_whole() -> None:
    source = build()
    model = tile(source, layers=5, hidden_size=20, intermediate_size=9)
    assert (model.config.heads, model.config.vocab_size) == (5, 20)
    old = source.state_dict()
    new = model.state_dict()
    heads, hidden, inner = [2, 0, 1, 2, 0], wrap(12, 20), wrap(5, 9)
    mapped = layer_map(3, 5)
    for layer, twin in enumerate(mapped):
        before, after = f"encoder.layers.{twin}.", f"encoder.layers.{layer}."
        was = old[before + "attn.Wqkv.weight"].view(3, 3, 4, 12)
        now = new[after + "attn.Wqkv.weight"].view(3, 5, 4, 20)
        assert torch.equal(now, was[:, heads][..., hidden])
        was = old[before + "attn.Wqkv.bias"].view(3, 3, 4)
        assert torch.equal(new[after + "attn.Wqkv.bias"].view(3, 5, 4), was[:, heads])
        was = old[before + "attn.Wo.weight"].view(12, 3, 4)
        now = new[after + "attn.Wo.weight"].view(20, 5, 4)
        assert torch.equal(now, was[hidden][:, heads])
        was = old[before + "mlp.Wi.weight"].view(2, 5, 12)
        now = new[after + "mlp.Wi.weight"].view(2, 9, 20)
        assert torch.equal(now, was[:, inner][..., hidden])
        was = old[before + "mlp.Wo.weight"]
        assert torch.equal(new[after + "mlp.Wo.weight"], was[hidden][:, inner])
        assert torch.equal(new[after + "mlp_norm.weight"], old[before + "mlp_norm.weight"][hidden])
    embedding = old["encoder.embedding.weight"][:, hidden]
    assert torch.equal(new["encoder.embedding.weight"], embedding)
    assert torch.equal(new["head.dense.weight"], old["head.dense.weight"][hidden][:, hidden])
    assert torch.equal(new["head.bias"], old["head.bias"])


def test_a_new_layer_made_of_the_first_gets_a_plain_attention_norm() -> None:
    """Layer 0 has none of its own."""
    model = tile(build(), layers=8)
    assert layer_map(3, 8)[1] == 0
    norm = model.encoder.layers[1].attn_norm
    assert torch.equal(norm.weight, torch.ones(12))
    assert torch.equal(norm.bias, torch.zeros(12))


def test_the_same_sizes_give_the_same_model() -> None:
    source = build()
    for name, tensor in tile(source).state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_a_tiled_model_knows_what_the_small_one_knew() -> None:
    """Twice the width: channels repeat, so that every token keeps its direction in the embedding;
    gradients reach everything."""
    small = build(replace(SMALL, layers=1))
    model = tile(small, hidden_size=24, intermediate_size=10)
    ids, bounds = torch.arange(20), torch.tensor([0, 20])
    hidden = model.encoder.embedding(ids)
    torch.testing.assert_close(hidden[:, 6:18], small.encoder.embedding(ids))
    model.mlm_loss(ids, ids, bounds).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 2}, "layers 2 is less than the smaller model's 3"),
        ({"hidden_size": 8}, "hidden_size 8 is less"),
        ({"hidden_size": 14}, "no whole number of heads of 4"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tile(build(), **sizes)
