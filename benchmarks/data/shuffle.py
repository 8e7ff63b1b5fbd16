"""How even domains and shards are in a batch, beside Streaming's py1e order of the same shards.

    python -m benchmarks.data.shuffle

200 shards of three domains, read by 64 lanes or nodes. The spread of a domain's share over batches,
and how often two documents of a batch are of one shard, are multiples of what independent draws
give; the distance between neighbours, as stored, is a share of a random pair's.
"""

from __future__ import annotations

import numpy as np

from benchmarks.data.documents import STREAMS, WEB, lengths
from benchmarks.record import Report, parser_of
from restomod.config import DataConfig
from restomod.data.mixture import stream_draws
from restomod.data.order import StreamCursor, StreamOrder
from restomod.data.packer import Packer
from restomod.data.random import keyed_generator

SHARDS, LANES = 200, 64


def compare(report: Report, documents: int, batches: tuple[int, ...]) -> None:
    """Judge both orders by batches of several sizes."""
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    counts = {name: int(SHARDS * share) for name, share in STREAMS.items()}
    sizes = np.full(sum(counts.values()), documents)
    domain_of_shard = np.repeat(np.arange(len(counts)), list(counts.values()))
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    total = len(shard_of)
    ours, apart = our_order(counts, documents, LANES)
    table = report.table(
        f"shuffle: {SHARDS} shards of {documents:,} documents in three domains",
        "order",
        "documents a batch",
        "domain's spread",
        "same shard",
        "distance",
    )
    for batch in batches:
        ids = get_partitions("relaxed", total, LANES, 1, 1, 1, batch).ravel()
        theirs = get_shuffle("py1e", sizes, LANES, 17, 0, 1 << 18)[ids[ids >= 0]]
        for name, order in (("restomod, rows of 8,192", ours), ("Streaming, py1e", theirs)):
            cut = order[: len(order) // batch * batch].reshape(-1, batch)
            share = (domain_of_shard[shard_of[cut]] == 0).mean(1)
            spread = share.std() / (share.mean() * (1 - share.mean()) / batch) ** 0.5
            same = np.mean([_pairs(np.bincount(shard_of[b])) for b in cut]) / _pairs(sizes)
            distance = np.abs(np.diff(cut.astype(np.int64), axis=1)).mean() / (total / 3)
            table.row(name, f"{batch:,}", f"{spread:.2f}", f"{same:.2f}", f"{distance:.2f}")
    report.figures["documents between a row's first and its last"] = apart


def our_order(counts: dict[str, int], documents: int, lanes: int) -> tuple[np.ndarray, float]:
    """Return the documents of one epoch in the order of rows, the lanes in turn, and how far apart
    a row's documents were drawn."""
    data = DataConfig(lanes=lanes)
    orders = [StreamOrder(17, n, np.full(count, documents), data) for n, count in counts.items()]
    begins = np.cumsum([0, *counts.values()])
    each = sum(counts.values()) * documents // lanes
    drawn_lengths = lengths(WEB, each)
    rows: list[list[list[int]]] = []
    apart: list[int] = []
    for lane in range(lanes):
        cursors = [StreamCursor(order, lane) for order in orders]
        streams = stream_draws(17, lane, 0, each, list(STREAMS.values())).tolist()
        packer: Packer[tuple[int, int]] = Packer()
        of_lane: list[list[int]] = []
        for age, (stream, length) in enumerate(zip(streams, drawn_lengths.tolist(), strict=True)):
            shard, document = cursors[stream].next()
            place = int((begins[stream] + shard) * documents + document)
            packer.add(age, length, (age, place))
            if packer.tokens >= data.buffer_rows * 8192:
                generator = keyed_generator(17, "row", lane, len(of_lane))
                row = packer.row(8192, 512, generator)
                of_lane.append([place for _, place in row])
                apart.append(max(age for age, _ in row) - min(age for age, _ in row))
        rows.append(of_lane)
    in_turn = [row for turn in zip(*rows, strict=False) for row in turn]
    return np.array([place for row in in_turn for place in row]), float(np.mean(apart))


def _pairs(counts: np.ndarray) -> float:
    """Return the share of pairs that fall into one group."""
    total = counts.sum()
    return float((counts * (counts - 1.0)).sum() / (total * (total - 1.0)))


def main() -> None:
    options = parser_of(__doc__).parse_args()
    with Report(options) as report:
        if options.quick:
            compare(report, 1200, (256,))
        else:
            compare(report, 3000, (256, 2048, 16_384))


if __name__ == "__main__":
    main()
