"""FLOPs per token against torch's counter and against pairs counted by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from restomod.config import ModelConfig
from restomod.model.encoder import EncoderConfig, MaskedLM
from restomod.model.flops import (
    attention_flops_per_token,
    flops_per_token,
    linear_flops_per_token,
)


def test_linear_flops_are_what_torch_counts() -> None:
    config = EncoderConfig(
        layers=3, hidden_size=32, heads=2, intermediate_size=48, vocab_size=90, global_every=1
    )
    model = MaskedLM(config)
    tokens, masked = 64, 16
    positions = torch.arange(masked) * 2
    batch = {
        "input_ids": torch.arange(tokens),
        "position_ids": torch.arange(tokens),
        "cu_seqlens": torch.tensor([0, tokens], dtype=torch.int32),
        "max_seqlen": tokens,
        "masked_positions": positions,
        "labels": positions,
        "row_ids": torch.tensor([0]),
    }
    with FlopCounterMode(display=False) as counter:
        model(batch)[0].backward()
    counts = counter.get_flop_counts()["Global"]
    linear = sum(n for op, n in counts.items() if op.__name__ in ("mm", "addmm"))
    assert linear == tokens * linear_flops_per_token(config, 90, masked / tokens)


@pytest.mark.parametrize("lengths", [[1], [5], [64, 65, 66], [300, 1, 129, 128, 2]])
@pytest.mark.parametrize(("layers", "global_every"), [(7, 3), (4, 1), (6, 2)])
def test_attention_counts_the_pairs_that_see_each_other(
    lengths: list[int], layers: int, global_every: int
) -> None:
    config = ModelConfig(
        layers=layers, hidden_size=32, heads=2, global_every=global_every, local_window=128
    )
    pairs = 0
    for layer in range(layers):
        for length in lengths:
            slots = torch.arange(length)
            far = 10**6 if layer % global_every == 0 else 64
            pairs += int(((slots[:, None] - slots).abs() <= far).sum())
    # Forward: q k and p v, 2 x 32 each a pair; backward twice that.
    expected = 3 * (2 * 2 * 32) * pairs / sum(lengths)
    assert attention_flops_per_token(config, lengths) == pytest.approx(expected)
    assert flops_per_token(config, 90, lengths, 0.3) == pytest.approx(
        expected + linear_flops_per_token(config, 90, 0.3)
    )


def test_base_size_agrees_with_the_published_count() -> None:
    """732 M linear FLOPs a token at base size, head at 30 % (from the paper's table 4)."""
    assert linear_flops_per_token(ModelConfig(), 50_368, 0.3) == pytest.approx(732e6, rel=0.005)
    ratio = flops_per_token(ModelConfig(), 50_368, [8192], 0.3) / flops_per_token(
        ModelConfig(), 50_368, [1024], 0.3
    )
    assert ratio == pytest.approx(1.64, abs=0.01)
