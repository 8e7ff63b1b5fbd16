import itertools

import numpy as np
import pytest
import torch

from restomod.config import DataConfig, MaskConfig, PhaseConfig
from restomod.data.batch import collate, document_slots
from restomod.data.lanes import Row
from restomod.data.mlm import IGNORED, predicted_slots

PHASE = PhaseConfig(sequence_length=10, row_tokens=64, mask=MaskConfig(rate=0.3))
DATA = DataConfig(tokens_per_document_min=8)


def row(number, bounds, positions):
    return Row(
        number=number,
        lane=0,
        input_ids=np.arange(64, dtype=np.int32) + 100 * number,
        cu_seqlens=np.array(bounds, np.int32),
        positions=np.array(positions, np.int32),
        labels=np.array(positions, np.int32) + 7,
        digest=0,
        stream_tokens=np.zeros(1, np.int64),
    )


def test_rows_become_one_batch_of_static_shape():
    batch = collate(
        [row(3, [0, 10, 17], [1, 5]), row(8, [0, 9, 64 - 1], [0, 62])], PHASE, DATA, False
    )
    assert batch["input_ids"].tolist() == [*range(300, 364), *range(800, 864)]
    ends = batch["cu_seqlens"].tolist()
    assert ends[:9] == [0, 10, 17, 27, 37, 47, 57, 64, 73]
    assert ends[9:11] == [127, 128]
    assert set(ends[11:]) == {128}
    assert len(ends) == 2 * document_slots(PHASE, DATA) + 1
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["masked_positions"].tolist()[:4] == [1, 5, 64, 126]
    assert batch["labels"].tolist()[:4] == [8, 12, 7, 69]
    assert set(batch["labels"].tolist()[4:]) == {IGNORED}
    assert len(batch["labels"]) == len(batch["masked_positions"]) == predicted_slots(128, PHASE)
    assert batch["row_ids"].tolist() == [3, 8]
    for begin, end in itertools.pairwise(ends):
        assert batch["position_ids"][begin:end].tolist() == list(range(end - begin))


def test_row_without_a_document_is_all_tail():
    batch = collate([row(0, [0], [])], PHASE, DATA, False)
    assert max(np.diff(batch["cu_seqlens"].numpy())) <= 10
    assert set(batch["labels"].tolist()) == {IGNORED}


def test_room_for_masks_is_six_deviations_and_an_overflow_is_an_error():
    assert predicted_slots(10_000, PHASE) == 3000 + 275
    assert predicted_slots(4, PhaseConfig(mask=MaskConfig(rate=0.9))) == 4
    assert predicted_slots(64, PhaseConfig(objective="clm")) == 64
    with pytest.raises(RuntimeError, match="exceed the batch's room"):
        collate([row(0, [0, 64], range(64))], PHASE, DATA, False)
