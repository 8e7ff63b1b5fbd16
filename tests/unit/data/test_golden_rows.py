"""A lane's rows and its state stay what they were, whatever version of the code makes them.

A run that goes on after an update would else repeat or lose documents, and the data digests that
two runs are compared by would differ for no reason of theirs. A change that is meant prints the new
hash in its failure.
"""

import json

import numpy as np
import pytest
import xxhash

from restomod.config import BatchWarmupConfig, DataConfig, MaskConfig, MaskStep, PhaseConfig
from tests.unit.data.test_lane_accounts import Account, Documents

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
    "plain": "54421a871756ccce",
    "document ends": "fb7c4bf83724fc5a",
    "next tokens": "779fb7be217bb7fb",
    "falling mask rate": "86312e6f5f8fe391",
    "damaged shard": "16842a740632e593",
    "whole words": "b4e93ec23522f316",
}


@pytest.mark.parametrize("case", CASES)
def test_rows_and_states_are_those_of_earlier_versions(case):
    data, phase = CASES[case]
    # Whole numbers all through: no machine's floating point shows.
    lengths = np.random.default_rng(0).integers(1, 120, 300).tolist()
    lengths[20] = 1000
    damaged = {3} if case == "damaged shard" else set()
    streams = [
        Documents("a", [lengths[n : n + 10] for n in range(0, 300, 10)], damaged=damaged),
        Documents("b", [lengths[n : n + 7] for n in range(0, 210, 7)]),
    ]
    digests, states = [], []
    for lane in range(2):
        before = Account(lane, streams, data, phase).step(20)
        # Later on with longer sequences, out of the state.
        longer = PhaseConfig(
            sequence_length=96, row_tokens=1024, batch_rows=2, mixture={"a": 1, "b": 2}
        )
        after = Account(lane, streams, data, longer, before.state.plain(), first_row=40).step(10)
        digests += [row.digest for row in before.rows + after.rows]
        states += [json.dumps(account.state.plain()) for account in (before, after)]
    assert len(set(digests)) == 60
    assert xxhash.xxh64_hexdigest(f"{digests} {states}") == EXPECTED[case]
