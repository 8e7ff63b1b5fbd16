"""How full rows are and how fast they are packed, by documents' lengths and in shipped recipes; and
how fast rows are masked, both by the seconds of one core.

    python -m benchmarks.data.packing

For the shipped recipes the plan's packer draws documents as long as a crawl's (log-normal, 1,240
tokens in the mean: DCLM's 752 B tokens in 606 M documents), cuts them as the phase does, and packs.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.data.documents import SHAPES, lengths, timed, tokenizer_folder
from benchmarks.record import ROOT, Report, parser_of
from restomod.config import MaskConfig, StreamConfig
from restomod.data import pack
from restomod.data.mlm import Masker
from restomod.data.random import keyed_generator
from restomod.data.shards import ShardedDataset
from restomod.data.tokenizer import load_tokenizer
from restomod.recipe import load_recipe
from restomod.tools.plan.packing import expected_packing

ROWS = ((2048, 4), (8192, 4), (8192, 64), (16_384, 4), (131_072, 4))
"""Tokens of a row, and rows that the buffer holds."""
FULL_FROM = 27
"""Mean documents in a row from which on rows are to be full."""
NODE_TOKENS_S = 2.5e6
"""What 8 H100s consume at base size, by ModernBERT's own run."""
CRAWL_MEAN = 1240


def by_length(report: Report, documents: int) -> None:
    """Pack documents of each shape into rows of several lengths."""
    table = report.table(
        "packing, a second of one core",
        "documents",
        "row",
        "documents a row",
        "buffer",
        "full",
        "documents apart",
        "M tokens/s",
    )
    shares, rates = [], []
    for shape in SHAPES:
        drawn = lengths(shape, documents)
        numbered = [np.full(n, number, np.uint32) for number, n in enumerate(drawn)]
        for row_tokens, rows in ROWS:
            if row_tokens < drawn.max():
                continue
            started = time.process_time()
            packed = list(pack(iter(numbered), row_tokens, rows * row_tokens))
            rate = drawn.sum() / (time.process_time() - started)
            whole = packed[: -rows - 1] or packed
            full = sum(len(row.tokens) for row in whole) / len(whole) / row_tokens
            apart = np.mean([np.ptp(row.tokens) for row in whole])
            a_row = row_tokens / drawn.mean()
            rates.append(rate)
            if round(a_row) >= FULL_FROM:
                shares.append(full)
            table.row(
                shape,
                f"{row_tokens:,}",
                f"{a_row:.0f}",
                f"{rows} rows",
                f"{full:.3%}",
                f"{apart:.0f}",
                f"{rate / 1e6:.0f}",
            )
    report.figures["full, 27 documents a row"] = min(shares)
    report.figures["tokens/s"] = min(rates)
    report.figures["times a node"] = min(rates) / NODE_TOKENS_S


def in_recipes(report: Report, folder: Path) -> None:
    """Pack rows of every phase of every shipped recipe."""
    web = crawl(folder)
    table = report.table(
        f"rows of the shipped recipes, documents of {CRAWL_MEAN:,} tokens in the mean",
        "rows of, chunks up to",
        "full",
        "chunks a row",
        "recipes",
    )
    found: dict[tuple[int, int], tuple[float, float]] = {}
    users: dict[tuple[int, int], set[str]] = {}
    for path in sorted((ROOT / "yamls" / "recipes").glob("*.yaml")):
        recipe = load_recipe([path])
        for phase in recipe.phases:
            shape = phase.row_tokens, phase.sequence_length
            users.setdefault(shape, set()).add(path.stem)
            if shape not in found:
                packing = expected_packing(recipe, phase, dict.fromkeys(phase.mixture, web))
                assert packing
                found[shape] = packing.efficiency, phase.row_tokens / packing.mean_chunk
    for shape, (full, chunks) in sorted(found.items()):
        table.row(
            f"{shape[0]:,}, {shape[1]:,}",
            f"{full:.3%}",
            f"{chunks:.0f}",
            str(len(users[shape])),
        )
    report.figures["full, shipped recipes"] = min(full for full, _ in found.values())


def crawl(folder: Path) -> ShardedDataset:
    """Write documents whose lengths are spread as a crawl's."""
    from streaming import MDSWriter

    generator = np.random.default_rng(0)
    with MDSWriter(out=str(folder / "crawl"), columns={"tokens": "ndarray:uint16"}) as writer:
        for length in generator.lognormal(np.log(CRAWL_MEAN) - 0.5, 1.0, 4000).astype(int):
            writer.write({"tokens": np.ones(max(length, 1), np.uint16)})
    return ShardedDataset("crawl", StreamConfig(path=str(folder / "crawl")), folder)


def masking(report: Report, folder: Path, seconds: float) -> None:
    """Mask rows of several lengths, a keyed generator for each."""
    tokenizer = load_tokenizer(tokenizer_folder(folder))
    tokens = np.random.default_rng(0).choice(tokenizer.ordinary_ids, 131_072).astype(np.int32)
    table = report.table(
        "masking at rate 0.3, M tokens a second of one core", "row", "tokens", "whole words"
    )
    for row in (1024, 8192, 16_384, 131_072):
        rates = []
        for whole_word in (False, True):
            masker = Masker(MaskConfig(whole_word=whole_word), tokenizer)

            def rows(masker: Masker = masker, row: int = row) -> Iterator[int]:
                for n in itertools.count():
                    masker(tokens[:row], keyed_generator(17, "mask", 0, n), 0.3)
                    yield row

            rates.append(timed(rows(), seconds, time.process_time) / 1e6)
        table.row(f"{row:,}", *(f"{rate:.0f}" for rate in rates))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Report(options) as report:
        by_length(report, 10_000 if options.quick else options.documents)
        in_recipes(report, Path(folder))
        masking(report, Path(folder), 0.1 if options.quick else 2.0)


if __name__ == "__main__":
    main()
