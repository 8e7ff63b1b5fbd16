"""What a row is made of, slot by slot."""

import numpy as np
import pytest

from restomod.config import MaskConfig, PhaseConfig
from restomod.data.rows import CLOSES, OPENS, ForeignTokenError, RowBuilder, SpecialTokens

CLS, SEP, PAD, MASK = 1, 2, 3, 4
BOTH = OPENS | CLOSES


class Vocabulary:
    vocab_size, reserved_ids = 100, tuple(range(10))
    cls_id, sep_id, pad_id, mask_id = CLS, SEP, PAD, MASK


def build(pieces, special="each_chunk", number=7, rate=0.0, seed=0, **phase):
    builder = RowBuilder(PhaseConfig(row_tokens=16, **phase), Vocabulary(), SpecialTokens(special))
    arrays = [(np.asarray(ids, np.uint16), ends) for ids, ends in pieces]
    generator = np.random.default_rng(seed)
    return builder(number, 5, arrays, generator, rate, np.array([6, 0]))


PIECES = [([10, 11, 12], OPENS), ([13], 0), ([14, 15], CLOSES), ([16], BOTH)]
LAID = {
    "each_chunk": (
        [CLS, 10, 11, 12, SEP, CLS, 13, SEP, CLS, 14, 15, SEP, CLS, 16, SEP, PAD],
        [0, 5, 8, 12, 15],
    ),
    "document_ends": (
        [CLS, 10, 11, 12, 13, 14, 15, SEP, CLS, 16, SEP, PAD, PAD, PAD, PAD, PAD],
        [0, 4, 5, 8, 11],
    ),
    "none": (
        [10, 11, 12, 13, 14, 15, 16, PAD, PAD, PAD, PAD, PAD, PAD, PAD, PAD, PAD],
        [0, 3, 4, 6, 7],
    ),
}


@pytest.mark.parametrize("special", LAID)
def test_chunks_lie_end_to_end_between_their_special_tokens(special):
    row = build(PIECES, special)
    ids, bounds = LAID[special]
    assert row.input_ids.tolist() == ids
    assert row.cu_seqlens.tolist() == bounds
    assert (row.number, row.lane) == (7, 5)
    assert row.stream_tokens.tolist() == [6, 0]
    kinds = {a.dtype for a in (row.input_ids, row.cu_seqlens, row.positions, row.labels)}
    assert kinds == {np.dtype(np.int32)}
    assert not len(row.positions)


@pytest.mark.parametrize("special", LAID)
def test_special_tokens_of_a_chunk_are_counted_as_they_are_laid(special):
    where = SpecialTokens(special)
    for ids, ends in PIECES:
        bounds = build([(ids, ends)], special).cu_seqlens
        assert where.count(ends) == bounds[-1] - len(ids)
    assert where.reserved == {"none": 0}.get(special, 2)


def test_masked_tokens_are_predicted_from_their_own_place():
    mask = MaskConfig(mask_share=1.0, random_share=0.0)
    whole, row = build(PIECES), build(PIECES, rate=1.0, mask=mask)
    ordinary = np.flatnonzero(whole.input_ids >= 10)
    assert row.positions.tolist() == ordinary.tolist()
    assert row.labels.tolist() == whole.input_ids[ordinary].tolist()
    assert (row.input_ids[ordinary] == MASK).all()
    rest = whole.input_ids < 10
    assert (row.input_ids[rest] == whole.input_ids[rest]).all()


def test_next_tokens_are_predicted_from_the_place_before_them_and_never_across_chunks():
    row = build(PIECES, "document_ends", objective="clm")
    assert row.input_ids.tolist() == LAID["document_ends"][0]
    assert row.positions.tolist() == [0, 1, 2, 5, 6, 8, 9]
    assert row.labels.tolist() == [10, 11, 12, 15, SEP, 16, SEP]


def test_an_id_that_the_tokenizer_lacks_is_an_error_that_knows_its_chunk():
    assert build([([99], BOTH), ([10], BOTH)]).input_ids[1] == 99
    for bad in (100, 65_535):
        for chunk in range(3):
            pieces = [([10, 11], BOTH), ([12], BOTH), ([13, 14], BOTH)]
            pieces[chunk][0][-1] = bad
            with pytest.raises(ForeignTokenError, match=rf"token {bad} .* vocabulary is 100") as e:
                build(pieces)
            assert e.value.chunk == chunk


@pytest.mark.parametrize("bad", [2**32 + 10, -1, -(2**32) + 10])
def test_ids_wider_than_32_bits_are_not_wrapped_into_the_vocabulary(bad):
    builder = RowBuilder(PhaseConfig(row_tokens=16), Vocabulary(), SpecialTokens("none"))
    pieces = [(np.array([11], np.uint16), BOTH), (np.array([10, bad], np.int64), BOTH)]
    with pytest.raises(ForeignTokenError, match=f"token {bad} does not exist") as error:
        builder(0, 0, pieces, np.random.default_rng(0), 0.0, np.zeros(1, np.int64))
    assert error.value.chunk == 1
    pieces[1] = (np.array([10, 11], np.int64), BOTH)
    row = builder(0, 0, pieces, np.random.default_rng(0), 0.0, np.zeros(1, np.int64))
    assert row.input_ids[:4].tolist() == [11, 10, 11, PAD]
    assert row.input_ids.dtype == np.int32


def test_the_first_and_the_last_id_of_the_vocabulary_are_ordinary():
    assert build([([0, 99], BOTH)]).input_ids.tolist()[:4] == [CLS, 0, 99, SEP]


@pytest.mark.parametrize("before", [0, 10, 99])
def test_the_first_token_of_a_later_chunk_is_told_as_its_own(before):
    with pytest.raises(ForeignTokenError, match="token 100 does not exist") as error:
        build([([before], BOTH), ([100], BOTH)], special="none")
    assert error.value.chunk == 1


def test_the_digest_tells_rows_apart_by_everything_in_them():
    mask = MaskConfig(mask_share=0.5, random_share=0.0)
    common = {"rate": 0.5, "mask": mask}
    row = build(PIECES, **common)
    assert build(PIECES, **common).digest == row.digest
    others = [
        build(PIECES, number=8, **common),
        build([([10, 11, 17], OPENS), *PIECES[1:]], **common),
        build(PIECES, seed=1, **common),
        build(PIECES, "document_ends", **common),
        build(PIECES, rate=0.0, mask=mask),
    ]
    assert len({row.digest, *(other.digest for other in others)}) == 6
    joined = [([10, 11], OPENS), ([12, 13], 0), *PIECES[2:]]
    assert build(PIECES, "none").input_ids.tolist() == build(joined, "none").input_ids.tolist()
    assert build(PIECES, "none").digest != build(joined, "none").digest


def test_the_digest_of_a_row_stays_what_it_was():
    """Runs are compared by it across versions."""
    assert build([([10], BOTH)], number=3).digest == 15_388_606_970_979_876_717
