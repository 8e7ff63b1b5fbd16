"""A rank that fails alone says why, and keeps no other waiting."""

import shutil
import time

import psutil
import pytest

from tests.conftest import Tiny, metrics
from tests.ranks import Ranks

LIMIT_S = 120


@pytest.fixture
def words(tiny: Tiny, tmp_path):
    recipe = tiny.write(tmp_path / "recipe.yaml")
    # A hang would end with the requeue code.
    return [recipe, f"runs_dir={tmp_path}", "run_name=lone", "faults.hang_timeout=20s"]


def test_killed_loader_process_ends_all_ranks(words, tmp_path):
    ranks = Ranks([*words, "phases.0.slots=1M"], 2, tmp_path / "log")
    while len(metrics(tmp_path / "lone")) < 3 and not ranks.ended():
        time.sleep(0.01)
    (worker,) = psutil.Process(ranks.pids[1]).children()
    worker.kill()
    assert ranks.wait(LIMIT_S) == 1, ranks.printed()
    assert f"data loader process {worker.pid} is killed by signal" in ranks.printed()
    assert not (tmp_path / "lone" / "REQUEUE").exists()


def test_shard_that_one_rank_lacks_is_named(words, tiny, tmp_path):
    shutil.copytree(tiny.folder / "mds" / "code", tmp_path / "code")
    last = max((tmp_path / "code").glob("*.zstd"))  # in the share of the last lane, so of rank 1
    last.unlink()
    more = f"data.streams.code.path={tmp_path}/code", f"cache_dir={tmp_path}/cache"
    ranks = Ranks([*words, *more], 2, tmp_path / "log")
    ranks.wait(LIMIT_S)
    assert ranks.codes == [2, 2], ranks.printed()
    assert not (tmp_path / "lone" / "REQUEUE").exists()
    errors = [line for line in ranks.printed().splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {last} (stream code): the shard is missing"]
