"""The encoder's own contract: packed batches in, sums out."""

from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.init import initialize

CONFIG = EncoderConfig(
    layers=4, hidden_size=32, heads=2, intermediate_size=48, vocab_size=90,
    local_window=16, pad_id=0, cls_id=1, sep_id=2, seed=7,
)  # fmt: skip


@pytest.fixture
def model() -> MaskedLM:
    model = MaskedLM(CONFIG)
    initialize(model, seed=1)
    with torch.no_grad():  # larger weights than training starts with, so that differences show
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                parameter.mul_(6)
    return model


def batch(rows: list[list[int]], first_row: int = 0, row_tokens: int = 64) -> dict[str, Any]:
    """A packed batch of rows, given as the lengths of their documents; every third slot masked."""
    lengths = [length for row in rows for length in [*row, row_tokens - sum(row)]]
    tokens = row_tokens * len(rows)
    generator = torch.Generator().manual_seed(first_row)
    ids = torch.randint(3, 90, (tokens,), generator=generator)
    masked = torch.arange(0, tokens, 3)
    padding = 5
    return {
        "input_ids": ids,
        "position_ids": torch.cat([torch.arange(n) for n in lengths]).int(),
        "cu_seqlens": torch.tensor([0, *accumulate(lengths), tokens, tokens], dtype=torch.int32),
        "max_seqlen": row_tokens,
        "masked_positions": torch.cat([masked, torch.zeros(padding, dtype=torch.int64)]),
        "labels": torch.cat([ids[masked], torch.full((padding,), -100)]),
        "row_ids": torch.arange(first_row, first_row + len(rows)),
    }


def test_forward_sums_what_mlm_loss_averages(model: MaskedLM) -> None:
    model.eval()
    packed = batch([[30, 20], [64], [1, 1, 40]])
    _, loss, right, count = model(packed)
    labels = torch.full_like(packed["input_ids"], -100)
    kept = packed["labels"] != -100
    labels[packed["masked_positions"][kept]] = packed["labels"][kept]
    mean = model.mlm_loss(packed["input_ids"], labels, packed["cu_seqlens"])
    torch.testing.assert_close(loss / count, mean)
    logits = model.logits(packed["input_ids"], packed["cu_seqlens"])
    assert int(right) == int((logits.argmax(-1) == labels).sum())
    assert int(count) == int(kept.sum())
    assert loss.dtype == torch.float32
    assert loss.shape == right.shape == count.shape == ()


def test_padding_of_the_masked_positions_changes_nothing(model: MaskedLM) -> None:
    packed = batch([[30, 20]])
    full = model(packed)
    kept = packed["labels"] != -100
    for name in ("masked_positions", "labels"):
        packed[name] = packed[name][kept]
    for a, b in zip(full, model(packed), strict=True):
        assert torch.equal(a, b)


def test_no_masked_token_contributes_zero_and_no_nan(model: MaskedLM) -> None:
    packed = batch([[30, 20]])
    packed["labels"].fill_(-100)
    objective, loss, right, count = model(packed)
    objective.backward()
    assert (float(loss.detach()), int(right), int(count)) == (0.0, 0, 0)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    ids, cu_seqlens = packed["input_ids"], packed["cu_seqlens"]
    assert float(model.mlm_loss(ids, torch.full_like(ids, -100), cu_seqlens).detach()) == 0.0


def gradients(model: MaskedLM, batches: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    losses = [model(b)[0] for b in batches]
    torch.stack(losses).sum().backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return torch.stack(losses).sum(), flat


def test_micro_batches_add_up_to_the_batch_with_dropout_on(model: MaskedLM) -> None:
    model.train()
    rows = [[30, 20], [64], [1, 1, 40], [60]]
    parts = []
    whole = batch(rows, first_row=10)
    for i in range(len(rows)):
        part = batch([rows[i]], first_row=10 + i)
        slots = slice(64 * i, 64 * i + 64)
        part["input_ids"] = whole["input_ids"][slots]
        kept = (whole["labels"] != -100) & (whole["masked_positions"] // 64 == i)
        part["masked_positions"] = whole["masked_positions"][kept] - 64 * i
        part["labels"] = whole["labels"][kept]
        parts.append(part)
    loss, gradient = gradients(model, [whole])
    loss_parts, gradient_parts = gradients(model, parts)
    torch.testing.assert_close(loss, loss_parts, rtol=1e-5, atol=0)
    assert (gradient - gradient_parts).norm() < 1e-5 * gradient.norm()


def test_dropout_is_on_in_training_only_and_depends_on_the_row_ids(model: MaskedLM) -> None:
    packed = batch([[30, 20]])
    model.train()
    first = model(packed)[0]
    assert torch.equal(model(packed)[0], first)
    packed["row_ids"] = packed["row_ids"] + 1
    assert not torch.equal(model(packed)[0], first)
    ids, cu_seqlens = packed["input_ids"], packed["cu_seqlens"]
    training = model.encode(ids, cu_seqlens)
    model.eval()
    assert not torch.equal(model(packed)[0], first)
    assert torch.equal(model.encode(ids, cu_seqlens), training)


def test_documents_do_not_see_each_other(model: MaskedLM) -> None:
    ids = torch.randint(3, 90, (60,), generator=torch.Generator().manual_seed(0))
    cu_seqlens = torch.tensor([0, 25, 60])
    before = model.encode(ids, cu_seqlens)
    ids[30] = (ids[30] + 1) % 90
    after = model.encode(ids, cu_seqlens)
    assert torch.equal(before[:25], after[:25])
    assert bool((before[25:] != after[25:]).any(-1).all())


def test_the_global_rope_base_may_change_on_a_living_model(model: MaskedLM) -> None:
    ids = torch.arange(3, 63)
    cu_seqlens = torch.tensor([0, 60])
    before = model.encode(ids, cu_seqlens)
    old, model.config.rope_base_global = model.config.rope_base_global, 50.0
    assert not torch.allclose(model.encode(ids, cu_seqlens), before)
    model.config.rope_base_global = old
    assert torch.equal(model.encode(ids, cu_seqlens), before)


def test_padding_behind_the_documents_is_seen_by_none(model: MaskedLM) -> None:
    model.eval()
    ids, bounds = torch.arange(4, 64), torch.tensor([0, 20, 47])
    labels = torch.full((60,), -100)
    labels[[3, 30]] = 5
    torch.use_deterministic_algorithms(True)  # fills what nothing has written to with NaN
    try:
        alone = model.encode(ids[:47], bounds)
        padded = model.encode(ids, bounds)
        loss = model.mlm_loss(ids, labels, bounds)
        loss.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(padded[:47], alone)
    assert padded.isfinite().all()
    torch.testing.assert_close(loss, model.mlm_loss(ids[:47], labels[:47], bounds))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all(), name


def test_nothing_to_encode_is_nothing(model: MaskedLM) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    for bounds in ([0], [0, 0], [0, 0, 0]):
        assert model.encode(nothing, torch.tensor(bounds)).shape == (0, CONFIG.hidden_size)
    assert model.mlm_loss(nothing, nothing, torch.tensor([0])) == 0


def test_labels_of_masked_tokens_alone_are_refused(model: MaskedLM) -> None:
    ids = torch.arange(9)
    with pytest.raises(ValueError, match=r"labels have shape \(3,\), input_ids \(9,\)"):
        model.mlm_loss(ids, ids[:3], torch.tensor([0, 9]))


@pytest.mark.parametrize("bounds", [[], [1, 9], [0, 5, 3, 9], [0, 10]])
def test_bounds_that_are_none_are_refused(model: MaskedLM, bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to at most 9"):
        model.encode(torch.arange(9), torch.tensor(bounds, dtype=torch.int64))
