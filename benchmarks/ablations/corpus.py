"""The corpus that all arms share: the demo's harvest, and the same tokens joined and cut.

In: the installed packages. Out, under data/ablations: a tokenizer of 2,048 tokens and, for each
domain, MDS folders `train` and `heldout` of whole documents; `train-cut`, where each document is
cut into pieces as the loader would cut it; `train-joined` and `heldout-joined`, where documents are
joined in random order, [SEP] between them, and the whole is cut into pieces of the same length.
What is there is not made again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

DOMAINS = ("code", "prose", "science")
ROOT = Path("data/ablations")
PIECE = 254
"""Tokens of a piece: the recipe's sequence length without [CLS] and [SEP]."""


def prepare() -> None:
    """Make what is missing."""
    corpus, tokenizer = ROOT / "corpus", ROOT / "tokenizer"
    texts = {(d, s): corpus / d / f"{s}.jsonl" for d in DOMAINS for s in ("train", "heldout")}
    _script("harvest", "--out", corpus, "--code-mb", 8, "--prose-mb", 5, "--science-mb", 5)
    train = [path for (_, split), path in texts.items() if split == "train"]
    _script("train_tokenizer", "--vocab-size", 2048, "--out", tokenizer, "--input", *train)
    datasets = [f"{ROOT}/mds/{d}/{s}={path}" for (d, s), path in texts.items()]
    named = [word for dataset in datasets for word in ("--dataset", dataset)]
    _script("write_mds", "--tokenizer", tokenizer, *named)
    for domain in DOMAINS:
        for split, kind in (("train", "cut"), ("train", "joined"), ("heldout", "joined")):
            _write_pieces(ROOT / "mds" / domain, split, kind)


def _script(name: str, *words: object) -> None:
    subprocess.run([sys.executable, f"data_prep/{name}.py", *map(str, words)], check=True)


def _write_pieces(folder: Path, split: str, kind: str) -> None:
    out = folder / f"{split}-{kind}"
    if (out / "restomod.json").is_file():
        return
    from restomod.config import StreamConfig
    from restomod.data.shards import ShardedDataset
    from restomod.data.tokenizer import load_tokenizer
    from restomod.prepare.shards import describe, write_description, write_shards

    tokenizer = load_tokenizer(ROOT / "tokenizer")
    source = folder / split
    dataset = ShardedDataset(str(source), StreamConfig(path=str(source)), ROOT / "cache", tokenizer)
    documents = [
        dataset.tokens(shard, n)
        for shard, count in enumerate(dataset.shard_documents)
        for n in range(count)
    ]
    pieces = joined(documents, tokenizer.sep_id) if kind == "joined" else cut(documents)
    out.mkdir()
    written = write_shards(out, pieces, tokenizer, size_limit=1 << 26, compression="zstd")
    about = describe(written, tokenizer, text_bytes=0, dropped={}, altered={}, sources=[split])
    write_description(out, about, written.counts)


def cut(documents: Iterable[np.ndarray], length: int = PIECE) -> Iterator[np.ndarray]:
    """Yield documents in pieces of at most `length`."""
    for document in documents:
        for start in range(0, len(document), length):
            yield document[start : start + length].copy()


def joined(
    documents: Iterable[np.ndarray], separator: int, length: int = PIECE
) -> Iterator[np.ndarray]:
    """Yield all documents as one, in random order, `separator` between them, in pieces."""
    documents = list(documents)
    order = np.random.default_rng(0).permutation(len(documents))
    between = np.array([separator], documents[0].dtype)
    parts = [part for n in order for part in (documents[n], between)][:-1]
    yield from cut([np.concatenate(parts)], length)
