"""A lane's rows stay what they were, whatever version of the code makes them.

A run that goes on after an update would else repeat or lose documents, and the data digests that
two runs are compared by would differ for no reason of theirs. A change that is meant prints the new
digests in its failure.
"""

import numpy as np
import pytest

from restomod.config import BatchWarmupConfig, DataConfig, MaskConfig, MaskStep, PhaseConfig
from tests.unit.data.test_lane_accounts import Account, corpus

COMMON = {"sequence_length": 64, "row_tokens": 512, "batch_rows": 2}
PLAIN = PhaseConfig(mixture={"a": 2, "b": 1}, **COMMON)
CASES = {
    "plain": (DataConfig(lanes=2, buffer_rows=2), PLAIN),
    "document ends": (
        DataConfig(lanes=2, special_tokens="document_ends", skip_shorter_than=9),
        PLAIN,
    ),
    "next tokens": (
        DataConfig(lanes=2, special_tokens="none", shuffle_block_documents=7),
        PhaseConfig(mixture={"a": 1, "b": 0}, objective="clm", **COMMON),
    ),
    "falling mask rate": (
        DataConfig(lanes=2, buffer_rows=1, tokens_per_document_min=64),
        PhaseConfig(
            mixture={"a": 1, "b": 1},
            mixture_by="repeat",
            mask=MaskConfig(rate=0.5, later=[MaskStep("8192", 0.1)], between="linear"),
            batch_warmup=BatchWarmupConfig(slots="4096", first_rows=1, increment_rows=1),
            **COMMON,
        ),
    ),
    "damaged shard": (DataConfig(lanes=2, on_damaged_shard="skip"), PLAIN),
    "whole words": (
        DataConfig(lanes=2),
        PhaseConfig(mixture={"a": 1, "b": 1}, mask=MaskConfig(whole_word=True), **COMMON),
    ),
}
EXPECTED = {
    "plain": "83de197dad943144",
    "document ends": "bffa206901d84d92",
    "next tokens": "b303c378f2ad551e",
    "falling mask rate": "6866729b340da1f2",
    "damaged shard": "d4f062b23a667809",
    "whole words": "c58e627c0e5395d3",
}


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_earlier_versions(case):
    data, phase = CASES[case]
    streams = [
        corpus("a", 300, 40, 0, shard=10, damaged={3} if case == "damaged shard" else set()),
        corpus("b", 200, 90, 1, shard=7),
    ]
    digests = []
    for lane in range(2):
        before = Account(lane, streams, data, phase).step(20)
        # Later on with longer sequences, out of the state.
        longer = PhaseConfig(
            sequence_length=96, row_tokens=1024, batch_rows=2, mixture={"a": 1, "b": 2}
        )
        after = Account(lane, streams, data, longer, before.state.plain(), first_row=40).step(10)
        digests += [row.digest for row in before.rows + after.rows]
        numbers = np.concatenate([after.state.counters.ravel(), np.ravel(after.state.places)])
        digests.append(int(numbers.sum()))
    assert len(set(digests)) == 62
    found = f"{sum(digest * (n + 1) for n, digest in enumerate(digests)) % 2**64:016x}"
    assert found == EXPECTED[case]
