"""From shards to masked batches with one worker process: ours, and what others have.

    python -m benchmarks.data.loading

Tokens a second, padding excluded for everybody. All read the same documents, shuffled, and mask
30 % of their tokens:

- restomod: packed and isolated rows from raw and compressed shards, and from text that the worker
  tokenises; beside the tokenizers library alone;
- Streaming's StreamingDataset (py1e) and Hugging Face's datasets, each in a DataLoader of one
  worker with transformers' padding and masking collator;
- datasets as transformers' run_mlm packs: `map` joins a thousand documents at a time and cuts
  them into blocks of 1,024 (no isolation; what is left of each thousand is lost), and the masking
  collator. What `map` takes, once and ahead, is given too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.data import peers
from benchmarks.data.documents import (
    WEB,
    lengths,
    recipe_of,
    timed,
    tokenizer_folder,
    words,
    write_streams,
)
from benchmarks.data.packing import NODE_TOKENS_S
from benchmarks.record import Report, parser_of
from restomod.data.loader import Loader
from restomod.data.sources import open_sources
from restomod.data.tokenizer import load_tokenizer

ROWS = (2048, 16_384, 65_536)
JUDGED = 16_384
"""Rows whose speed is held against the target: a recipe's."""


def our_batches(folder: Path, root: Path, row_tokens: int) -> Iterator[int]:
    recipe = recipe_of(folder, root, row_tokens, lanes=8, workers=1)
    loader = Loader(recipe, open_sources(recipe))
    for _ in loader:
        yield loader.facts.real_tokens


def from_start(folder: Path, root: Path, documents: int) -> float:
    """Return tokens a second of reading as many documents as there are, with an empty cache, start
    and unpacking included."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    most = lengths(WEB, documents).sum()
    started, tokens = time.perf_counter(), 0
    for batch in our_batches(folder, root, 16_384):
        tokens += batch
        if tokens >= most:
            break
    return tokens / (time.perf_counter() - started)


def tokenizers_alone(folder: Path) -> Iterator[int]:
    """Tokenise texts as long as the documents, in one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    backend = load_tokenizer(tokenizer_folder(folder)).backend
    generator = np.random.default_rng(5)
    texts = [words(generator, int(n) // 2) for n in lengths(WEB, 3000)]
    while True:
        for start in range(0, len(texts), 500):
            encoded = backend.encode_batch_fast(texts[start : start + 500])
            yield sum(len(encoding.ids) for encoding in encoded)


def compare(report: Report, folder: Path, documents: int, seconds: float, rounds: int) -> None:
    """Time all contenders in turn, and take the best time of each."""
    streams = {
        kind: write_streams(folder, documents // (10 if kind == "text" else 1), kind)
        for kind in ("raw", "zstd", "text")
    }
    arrow = peers.as_arrow(folder, streams["raw"])
    blocks, map_rate = peers.in_blocks(folder, arrow)
    sources: dict[str, Callable[[], Iterator[int]]] = {
        f"restomod, rows of {row:,}": lambda row=row: our_batches(folder, streams["raw"], row)
        for row in ROWS
    }
    sources |= {
        "restomod, text tokenised by the worker": lambda: our_batches(
            folder, streams["text"], 16_384
        ),
        "tokenizers alone, one thread": lambda: tokenizers_alone(folder),
        "StreamingDataset, padded": lambda: peers.streaming_batches(folder, streams["raw"]),
        "StreamingDataset, zstd, padded": lambda: peers.streaming_batches(folder, streams["zstd"]),
        "datasets, padded": lambda: peers.padded_batches(folder, arrow),
        "datasets, joined and cut ahead": lambda: peers.block_batches(folder, blocks),
    }
    best = dict.fromkeys(sources, 0.0)
    for _ in range(rounds):
        for name, batches in sources.items():
            best[name] = max(best[name], timed(batches(), seconds))
    for kind in ("raw", "zstd"):
        best[f"restomod, {kind}, from an empty cache"] = from_start(
            folder, streams[kind], documents
        )
    best["datasets, joining and cutting alone (map)"] = map_rate
    ours = best[f"restomod, rows of {JUDGED:,}"]
    table = report.table(
        "shards to masked batches, one worker process; stored ids unless it says text",
        "contender",
        "M tokens/s",
        f"ours, {JUDGED:,} / this",
    )
    for name, rate in best.items():
        table.row(name, f"{rate / 1e6:.2f}", f"{ours / rate:.2f}x")
        report.figures[f"tokens/s, {name}"] = rate
    report.figures["times a node"] = ours / NODE_TOKENS_S


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each timing")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.quick:
        options.documents, options.seconds, options.rounds = 6000, 0.2, 1
    with tempfile.TemporaryDirectory() as folder, Report(options) as report:
        compare(report, Path(folder), options.documents, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
