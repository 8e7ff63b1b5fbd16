"""Dropout masks: pure functions of their counters, and random in every direction."""

import pytest
import torch
from torch import Tensor

from restomod.model.dropout import dropout, keep_mask, layer_keys, token_keys

ROWS = torch.tensor([0, 1, 2, 3, 1_000_003, 2**40])


def masks(seed: int = 3, rows: Tensor = ROWS, layer: int = 4, rate: float = 0.1) -> Tensor:
    """Keep masks [row, position, channel]."""
    tokens = 256 * len(rows)
    layers = layer_keys(6, 96, rows.device)
    return keep_mask(token_keys(seed, rows, tokens), layers[layer], 96, rate).view(
        len(rows), 256, 96
    )


def test_a_row_has_the_same_mask_in_any_micro_batch() -> None:
    together = masks()
    for i, row in enumerate(ROWS):
        assert torch.equal(masks(rows=row[None])[0], together[i])
    assert torch.equal(masks(rows=ROWS.flip(0)), together.flip(0))


def test_no_global_rng_is_read_or_moved() -> None:
    torch.manual_seed(0)
    first, state = masks(), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(masks(), first)
    torch.manual_seed(0)
    masks()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5])
def test_the_rate_is_kept_in_every_row_position_and_channel(rate: float) -> None:
    dropped = (~masks(rate=rate)).double()
    for dims in ((0, 1, 2), (1, 2), (0, 2), (0, 1)):
        mean = dropped.mean(dims)
        samples = dropped.numel() / max(mean.numel(), 1)
        deviation = (rate * (1 - rate) / samples) ** 0.5
        assert (mean - rate).abs().max() <= 5 * deviation + 2**-16


def correlation(a: Tensor, b: Tensor) -> float:
    """Correlation of two masks, in standard deviations of what independent ones show."""
    a, b = (x.double().flatten() - x.double().mean() for x in (a, b))
    return abs(float((a * b).mean() / (a.std() * b.std())) * a.numel() ** 0.5)


@pytest.mark.parametrize("shift", [1, 2, 3, 4, 8, 16, 32, 64])
def test_neighbours_are_independent(shift: int) -> None:
    x = masks(rate=0.3)
    assert correlation(x[:, :, shift:], x[:, :, :-shift]) < 4.5
    assert correlation(x[:, shift:], x[:, :-shift]) < 4.5
    assert correlation(x[:, shift:, shift:], x[:, :-shift, :-shift]) < 4.5


def test_rows_layers_and_seeds_are_independent() -> None:
    x = masks(rate=0.3)
    for other in (
        masks(rate=0.3, layer=5),
        masks(rate=0.3, layer=0),
        masks(rate=0.3, seed=4),
        masks(rate=0.3, seed=-3),
        masks(rate=0.3, rows=ROWS + 1),
        masks(rate=0.3, rows=ROWS + 2**32),
    ):
        assert not torch.equal(x, other)
        assert correlation(x, other) < 4.5
    for i in range(len(ROWS)):
        for j in range(i):
            assert correlation(x[i], x[j]) < 4.5


def test_counts_of_dropped_channels_are_binomial() -> None:
    """No token is favoured: the variance of the count over tokens is n p (1 - p)."""
    counts = (~masks(rate=0.1)).sum(-1).double()
    assert abs(float(counts.var()) / (96 * 0.1 * 0.9) - 1) < 0.15


def test_what_is_kept_is_scaled_and_gradients_follow_the_mask() -> None:
    rows = torch.tensor([9])
    keys = token_keys(1, rows, 512)
    layer_key = layer_keys(4, 30, rows.device)[2]
    x = torch.ones(512, 30, requires_grad=True)
    out = dropout(x, keys, layer_key, 0.25)
    kept = keep_mask(keys, layer_key, 30, 0.25)
    torch.testing.assert_close(out, kept / 0.75)
    out.sum().backward()
    torch.testing.assert_close(x.grad, kept / 0.75)
