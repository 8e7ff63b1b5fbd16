"""Of equal documents the first stays, however the hashes are cut into parts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restomod.prepare.config import Preparation
from restomod.prepare.documents import HASH, hashes_file
from restomod.prepare.exact_duplicates import exact_drops, find_in_part, parts_for
from restomod.prepare.job import Job

EDGES = [0, 1, 1 << 63, (1 << 64) - 1, ((1 << 64) - 1) // 3, ((1 << 64) - 1) // 7]


def write(job, units):
    for unit, values in enumerate(units):
        hashes = np.zeros(len(values), HASH)
        hashes["high"] = [high for high, _ in values]
        hashes["low"] = [low for _, low in values]
        hashes["index"] = np.arange(len(values))
        order = np.lexsort((hashes["index"], hashes["low"], hashes["high"]))
        path = hashes_file(job, unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, hashes[order])


def expected(units):
    first, drops = {}, []
    for unit, values in enumerate(units):
        drops.append([])
        for index, value in enumerate(values):
            if value in first:
                drops[unit].append([index, *first[value]])
            else:
                first[value] = (unit, index)
    return drops


@settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(EDGES), st.integers(0, 2)), max_size=8),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 7),
)
def test_the_first_of_equal_documents_stays_whatever_the_parts(tmp_path, units, parts):
    job = Job(Preparation(), tmp_path)
    write(job, units)
    by_unit = np.zeros(len(units), int)
    for part in reversed(range(parts)):
        by_unit += find_in_part(job, part, parts, len(units))["by_unit"]
    wanted = expected(units)
    for unit, drops in enumerate(wanted):
        assert exact_drops(job, unit, parts).tolist() == drops
    assert by_unit.tolist() == [len(drops) for drops in wanted]


@pytest.mark.parametrize(("documents", "parts"), [(0, 1), (4_000_000, 1), (4_000_001, 2)])
def test_parts_are_bounded(documents, parts):
    assert parts_for(documents) == parts
    assert isinstance(hashes_file(Job(Preparation(), Path("x")), 1), Path)
