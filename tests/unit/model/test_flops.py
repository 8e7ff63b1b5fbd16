"""FLOPs per token against torch's counter and against pairs counted by hand."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from restomod.config import ComputeConfig, ModelConfig
from restomod.model import loss
from restomod.model.attention import operator
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.flops import (
    attention_flops_per_token,
    flops_per_token,
    linear_flops_per_token,
)

CONFIG = EncoderConfig(
    layers=3, hidden_size=32, heads=2, intermediate_size=48, vocab_size=90, global_every=1
)


def packed(lengths: list[int], masked: int) -> dict[str, object]:
    """A batch of documents, the first `masked` slots of which are predicted."""
    positions = torch.arange(masked)
    return {
        "input_ids": torch.arange(sum(lengths)) % 90,
        "position_ids": torch.cat([torch.arange(n) for n in lengths]),
        "cu_seqlens": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        "max_seqlen": max(lengths),
        "masked_positions": positions,
        "labels": positions,
        "row_ids": torch.tensor([0]),
    }


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("global_every", [1, 2])
def test_torch_counts_the_same_in_training(causal: bool, global_every: int) -> None:
    config = replace(CONFIG, causal=causal, global_every=global_every, local_window=16)
    lengths = [40, 1, 23]
    with FlopCounterMode(display=False) as counter:
        MaskedLM(config)(packed(lengths, 16)).objective.backward()
    per_token = flops_per_token(config, 90, lengths, 16 / 64, causal)
    assert counter.get_total_flops() == pytest.approx(64 * per_token, rel=1e-9)


def test_what_the_operators_tell_torch_is_what_they_compute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same forward pass with the operators' insides in the open, so that torch counts each of
    their products of matrices itself."""
    lengths = [40, 1, 23]
    model = MaskedLM(CONFIG).requires_grad_(False)
    model.compute_as(ComputeConfig(attention="reference"))
    for module, name in ((operator, "_attention"), (loss, "_linear_cross_entropy")):
        monkeypatch.setattr(module, name, getattr(module, name)._init_fn)
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **rest: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model(packed(lengths, 16))  # gradients are on: the loss computes its own in this pass
    counts = counter.get_flop_counts()["Global"]
    assert {op.__name__ for op in counts} == {"mm", "addmm", "addmm_", "bmm"}
    head = 16 * 32 * 32 + 3 * 16 * 32 * 90
    body = 64 * 3 * (4 * 32 * 32 + 3 * 32 * 48)
    seen = 3 * sum(n * n for n in lengths)
    assert counter.get_total_flops() == 2 * (head + body) + 2 * 2 * 32 * seen


@pytest.mark.parametrize("lengths", [[1], [5], [64, 65, 66], [300, 1, 129, 128, 2]])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("layers", "global_every"), [(7, 3), (4, 1), (6, 2)])
def test_attention_counts_the_pairs_that_see_each_other(
    lengths: list[int], layers: int, global_every: int, causal: bool
) -> None:
    config = ModelConfig(
        layers=layers, hidden_size=32, heads=2, global_every=global_every, local_window=128
    )
    pairs = 0
    for layer in range(layers):
        for length in lengths:
            slots = torch.arange(length)
            far = 10**6 if layer % global_every == 0 else 64
            distance = slots[:, None] - slots
            seen = (distance.abs() <= far) & (distance >= (0 if causal else -length))
            pairs += int(seen.sum())
    # Forward: q k and p v, 2 x 32 each a pair; backward twice that.
    expected = 3 * (2 * 2 * 32) * pairs / sum(lengths)
    assert attention_flops_per_token(config, lengths, causal) == pytest.approx(expected)
    assert flops_per_token(config, 90, lengths, 0.3, causal) == pytest.approx(
        expected + linear_flops_per_token(config, 90, 0.3)
    )


def test_base_size_agrees_with_the_published_count() -> None:
    """732 M linear FLOPs a token at base size, head at 30 % (from the paper's table 4)."""
    assert linear_flops_per_token(ModelConfig(), 50_368, 0.3) == pytest.approx(732e6, rel=0.005)
    ratio = flops_per_token(ModelConfig(), 50_368, [8192], 0.3) / flops_per_token(
        ModelConfig(), 50_368, [1024], 0.3
    )
    assert ratio == pytest.approx(1.64, abs=0.01)
