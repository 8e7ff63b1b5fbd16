"""Made documents for the benchmarks of the data path: lengths, texts, shards, and a recipe."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import ROOT
from restomod.config import DataConfig, PhaseConfig, Recipe, StreamConfig

STREAMS = {"web": 0.5, "code": 0.3, "science": 0.2}
WEB = "log-normal, cut at 1,024"
Shape = Callable[[np.random.Generator, int], np.ndarray]
SHAPES: dict[str, Shape] = {
    WEB: lambda g, n: np.minimum(1024, g.lognormal(5.4, 1.0, n)),
    "uniform 100 to 500": lambda g, n: g.uniform(100, 500, n),
    "exponential": lambda g, n: g.exponential(300, n),
}
WORDS = [
    "".join(parts)
    for parts in itertools.product(
        ("", "re", "un"),
        ("mo", "ka", "ti", "se", "ba"),
        ("", "lo", "nd", "st"),
        ("", "ing", "s"),
    )
]


def lengths(shape: str, count: int, seed: int = 0) -> np.ndarray:
    """Return lengths of documents in tokens."""
    drawn = SHAPES[shape](np.random.default_rng(seed), count)
    return np.clip(drawn, 8, 8192).astype(int)


def words(generator: np.random.Generator, count: int) -> str:
    """Return a text of so many words, the first of the list the commonest."""
    return " ".join(WORDS[n % len(WORDS)] for n in generator.zipf(1.2, size=count).tolist())


def timed(
    batches: Iterable[int], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return tokens a second; each item is a batch's tokens, the first is not timed."""
    iterator = iter(batches)
    next(iterator)
    tokens, started = 0, clock()
    while clock() - started < seconds:
        tokens += next(iterator)
    return tokens / (clock() - started)


def tokenizer_folder(folder: Path) -> Path:
    """Train a small tokenizer once."""
    out = folder / "tokenizer"
    if not out.exists():
        generator = np.random.default_rng(1)
        texts = folder / "tokenizer.jsonl"
        texts.write_text(
            "".join(json.dumps({"text": words(generator, 300)}) + "\n" for _ in range(3000))
        )
        script = ROOT / "data_prep" / "train_tokenizer.py"
        subprocess.run(
            [sys.executable, script, "--vocab-size", "1024", "--out", out, "--input", texts],
            check=True,
            stderr=subprocess.DEVNULL,
        )
    return out


def write_streams(folder: Path, documents: int, kind: str) -> Path:
    """Write the three streams once, as raw or compressed token shards (`raw`, `zstd`) or `text`."""
    from streaming import MDSWriter

    from restomod.data.tokenizer import load_tokenizer

    root = folder / kind
    if root.exists():
        return root
    tokenizer = load_tokenizer(tokenizer_folder(folder))
    column = {"text": "str"} if kind == "text" else {"tokens": "ndarray:uint16"}
    for number, (name, share) in enumerate(STREAMS.items()):
        generator = np.random.default_rng(number)
        with MDSWriter(
            out=str(root / name),
            columns=column,
            compression="zstd" if kind == "zstd" else None,
            hashes=["xxh64"],
            size_limit=1 << 24,
        ) as writer:
            for length in lengths(WEB, int(documents * share), number):
                if kind == "text":
                    writer.write({"text": words(generator, int(length) // 2)})
                else:
                    drawn = generator.zipf(1.3, size=length) % len(tokenizer.ordinary_ids)
                    writer.write({"tokens": tokenizer.ordinary_ids[drawn].astype(np.uint16)})
    return root


def recipe_of(folder: Path, root: Path, row_tokens: int, **data: Any) -> Recipe:
    """Return a recipe of one phase, at 1,024, that reads the streams."""
    return Recipe(
        cache_dir=str(folder / "cache"),
        tokenizer=str(tokenizer_folder(folder)),
        data=DataConfig(
            streams={name: StreamConfig(path=str(root / name), max_epochs=1e6) for name in STREAMS},
            **data,
        ),
        phases=[
            PhaseConfig(
                slots="100M",
                sequence_length=1024,
                row_tokens=row_tokens,
                batch_rows=8,
                micro_batch_rows=2,
                mixture=dict(STREAMS),
            )
        ],
    )
