"""Thousands of steps take no more memory, files, threads or disk at their end than in their middle:
the rank, its loader's processes, and the one that writes for W&B.

    python -m pytest tests/long/test_training_soak.py -s
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from restomod.data.tokenizer import load_tokenizer
from restomod.train.checkpoints.manifest import local_steps
from tests.conftest import Tiny, metrics
from tests.long.corpus import write_stream
from tests.ranks import Ranks

STEPS = 4000
DOCUMENTS = {"large": 40_000, "small": 10_000}
LIMIT_S = 3600.0
GROWTH_BYTES = 16 << 20
"""In half of the steps, of any process. W&B's keeps 30 kB for each checkpoint and 50 kB for each
table of samples by itself; 8 kB for each step of another one would be found."""


class Size(NamedTuple):
    rss: int
    files: int
    threads: int


@pytest.mark.slow
def test_a_long_run_does_not_grow(tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny.folder / "tokenizer")
    for name, count in DOCUMENTS.items():
        write_stream(tmp_path / name, count, tokenizer.ordinary_ids, "zstd")
    recipe = tiny.write(
        tmp_path / "recipe.yaml",
        runs_dir=str(tmp_path / "runs"),
        cache_dir=str(tmp_path / "cache"),
        phases__slots=STEPS * 4 * 512,
        phases__mixture={"large": 0.7, "small": 0.3},
        data__streams={name: {"path": str(tmp_path / name)} for name in DOCUMENTS},
        data__workers=2,
        evaluation__every_steps=100,
        checkpoint__every_steps=25,
        logging__wandb__mode="offline",
    )
    folder = tmp_path / "runs" / "tiny"
    sizes = _watch(Ranks([recipe], 1, tmp_path / "log.txt"), folder)
    assert metrics(folder, "end"), (tmp_path / "log.txt").read_text()[-4000:]
    assert [line["step"] for line in metrics(folder)] == list(range(1, STEPS + 1))
    assert len(metrics(folder, "eval")) == STEPS // 100
    assert len(metrics(folder, "checkpoint")) == STEPS // 25
    assert len(local_steps(folder)) < 10
    print(f"\n{STEPS:,} steps; at the middle and at most in the second half:")
    grown = []
    for name, of in sizes.items():
        middle = min(of, key=lambda step: abs(step - STEPS // 2))
        if abs(middle - STEPS // 2) > STEPS // 20:
            continue  # a process of a start or an end
        later = [size for step, size in of.items() if step > middle]
        most = Size(*(max(values) for values in zip(*later, strict=True)))
        print(
            f"{name:<30} {of[middle].rss >> 20:>5} to {most.rss >> 20} MiB, "
            f"{of[middle].files} to {most.files} files, "
            f"{of[middle].threads} to {most.threads} threads"
        )
        grown += [name] * (most.rss > of[middle].rss + GROWTH_BYTES)
        grown += [name] * (most.files > of[middle].files + 8)
        grown += [name] * (most.threads > of[middle].threads + 2)
    assert len({name.split()[1] for name in sizes}) >= 3, list(sizes)
    assert grown == []


def _watch(ranks: Ranks, folder: Path) -> dict[str, dict[int, Size]]:
    """Return how large each process was, by step, until the run's end."""
    sizes: dict[str, dict[int, Size]] = defaultdict(dict)
    end = time.monotonic() + LIMIT_S
    try:
        while not ranks.ended():
            assert time.monotonic() < end, "the run takes too long"
            lines = metrics(folder)
            with contextlib.suppress(psutil.NoSuchProcess):
                rank = psutil.Process(ranks.pids[0])
                for process in (rank, *rank.children(recursive=True)):
                    with contextlib.suppress(psutil.Error), process.oneshot():
                        size = Size(
                            process.memory_info().rss, process.num_fds(), process.num_threads()
                        )
                        sizes[f"{process.pid} {process.name()}"][len(lines)] = size
            time.sleep(2)
    finally:
        ranks.kill()
    return sizes
