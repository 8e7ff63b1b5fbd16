"""How long it takes to the first document where very many are indexed, and the memory.

    python -m benchmarks.data.start_up

Ours: data and tokenizer opened, and the first row of each of 64 lanes. Beside it what Streaming
computes before its first sample, its partition of the samples and their py1e shuffle, and datasets'
shuffle of as many rows, up to 10^8 documents: both grow with the documents and are extrapolated in
proportion. Each runs in a process of its own; memory is anonymous memory over what the process had
before.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data.documents import recipe_of, tokenizer_folder
from benchmarks.record import Report, parser_of

MOST = 2 * 10**9
DOCUMENTS = (10**6, 10**7, 10**8, 10**9, MOST)
QUICK = (10**5,)
LANES = 64


class Growth:
    """How much anonymous memory a process took since `begin`, in MB."""

    begun = most = 0.0

    @classmethod
    def begin(cls) -> None:
        cls.begun = cls.anonymous()

    @classmethod
    def end(cls) -> None:
        cls.most = max(cls.most, cls.anonymous() - cls.begun)

    @staticmethod
    def anonymous() -> float:
        found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(found[1]) / 1e3 if found else 0.0


def in_child(work: Callable[..., float], *given: Any) -> tuple[float, float]:
    """Return the seconds that `work` returns, and by how many MB its process grew."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, *given))


def _measured(work: Callable[..., float], *given: Any) -> tuple[float, float]:
    import torch.utils.data  # what every contender imports anyway is not counted

    assert torch
    seconds = work(*given)
    return seconds, Growth.most


def huge_index(folder: Path, shards: int, documents: int) -> Path:
    """Write an index whose shards are all the same file of `documents` documents."""
    from streaming import MDSWriter

    root = folder / f"index-{shards}-{documents}"
    if root.exists():
        return root
    columns = {"tokens": "ndarray:uint16"}
    with MDSWriter(out=str(root), columns=columns, hashes=["xxh64"], size_limit=1 << 30) as writer:
        for _ in range(documents):
            writer.write({"tokens": np.full(40, 300, np.uint16)})
    index = json.loads((root / "index.json").read_text())
    (entry,) = index["shards"]
    (root / "index.json").write_text(json.dumps({**index, "shards": [entry] * shards}))
    return root


def ours(folder: Path, shards: int, documents: int) -> float:
    import restomod.data.loader
    from restomod.config import StreamConfig
    from restomod.data.lanes import Lane, LaneSetting
    from restomod.data.sources import open_sources

    assert restomod
    root = huge_index(folder, shards, documents)
    recipe = recipe_of(folder, root, 1024, lanes=LANES, workers=0)
    recipe.data.streams = {"web": StreamConfig(path=str(root))}
    recipe.phases[0].mixture = {"web": 1.0}
    recipe.data.shards_open_per_rank = 1024
    Growth.begin()
    started = time.perf_counter()
    sources = open_sources(recipe)
    setting = LaneSetting.of(
        recipe.seed, recipe.data, recipe.phases[0], 0, sources.streams, sources.tokenizer
    )
    lanes = [Lane(number, setting) for number in range(LANES)]
    for lane in lanes:
        lane.next_row()
    seconds = time.perf_counter() - started
    Growth.end()
    return seconds


def py1e(folder: Path, shards: int, documents: int) -> float:
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    Growth.begin()
    started = time.perf_counter()
    ids = get_partitions("relaxed", shards * documents, 64, 8, 8, 1, 64)
    order = get_shuffle("py1e", np.full(shards, documents), 64, 17, 0, 1 << 18)
    ids = np.where(ids != -1, order[ids], -1)
    seconds = time.perf_counter() - started
    Growth.end()
    assert ids.size
    return seconds


def arrow(folder: Path, shards: int, documents: int) -> float:
    import datasets
    import pyarrow as pa

    table = pa.table({"id": pa.array(np.zeros(shards * documents, np.int8))})
    dataset = datasets.Dataset(table)
    Growth.begin()
    started = time.perf_counter()
    shuffled = dataset.shuffle(seed=0)
    first = shuffled[0]
    seconds = time.perf_counter() - started
    Growth.end()
    assert first
    return seconds


CONTENDERS = {"restomod": ours, "Streaming": py1e, "datasets": arrow}
LIMITS = {"Streaming": 10**8, "datasets": 10**8}
"""Documents up to which peers are measured: beyond, they take minutes and tens of GB."""


def compare(report: Report, folder: Path, sizes: tuple[int, ...]) -> None:
    """Time all contenders with each number of documents."""
    tokenizer_folder(folder)
    table = report.table(
        f"start-up: to the first row of each of {LANES} lanes, or to the order of the samples",
        "documents",
        "shards",
        "restomod",
        "Streaming, py1e",
        "datasets",
    )
    found: dict[str, tuple[int, float, float]] = {}
    for documents in sizes:
        shards = max(20, documents // 50_000)
        cells = []
        for name, contender in CONTENDERS.items():
            if documents <= LIMITS.get(name, documents):
                seconds, megabytes = in_child(contender, folder, shards, documents // shards)
                found[name] = documents, seconds, megabytes
                cells.append(f"{seconds:.2f} s, {megabytes:,.0f} MB")
            else:
                measured, seconds, megabytes = found[name]
                times = documents / measured
                seconds, gigabytes = times * seconds, times * megabytes / 1e3
                cells.append(f"({seconds:,.0f} s, {gigabytes:,.0f} GB)")
        table.row(f"{documents:,}", f"{shards:,}", *cells)
    for name, (documents, seconds, megabytes) in found.items():
        times = max(sizes) / documents
        report.figures |= {f"{name}, s": times * seconds, f"{name}, MB": times * megabytes}


def main() -> None:
    options = parser_of(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder, Report(options) as report:
        compare(report, Path(folder), QUICK if options.quick else DOCUMENTS)


if __name__ == "__main__":
    main()
