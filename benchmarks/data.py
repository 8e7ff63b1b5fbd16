"""The data path beside its peers and its targets, in one run, on a CPU.

    python benchmarks/data.py
    python benchmarks/data.py --parts packing,masking --documents 100000

Parts:

- packing: tokens a second and how full rows are, by row length, buffer and shape of the documents;
- masking: tokens a second by row length, tokens and whole words;
- loading: tokens a second from shards to masked batches with one worker process, raw and compressed
  shards and text tokenised on the fly; beside Streaming's StreamingDataset and Hugging Face's
  datasets, each with a DataLoader of one worker and transformers' padding and masking collator.
  Tokens exclude padding for everybody. Text is also compared with `tokenizers` alone;
- start-up: seconds and anonymous memory until the first document, for indexes of 10^6 to 2 x 10^9
  documents; beside what Streaming computes before its first sample (its partition of the samples
  and their py1e shuffle) and datasets' shuffle, as far as memory allows;
- shuffle: how even domains and shards are in a batch, beside py1e's order of the same shards.

Targets are DESIGN's. Figures of a shared machine are noisy: compare those of one run.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("packing", "masking", "loading", "start-up", "shuffle")
STREAMS = {"web": 0.5, "code": 0.3, "science": 0.2}
SECONDS = 6.0
"""How long each contender of a part is timed."""
Shape = Callable[[np.random.Generator, int], np.ndarray]
SHAPES: dict[str, Shape] = {
    "log-normal, cut at 1,024": lambda g, n: np.minimum(1024, g.lognormal(5.4, 1.0, n)),
    "uniform 100 to 500": lambda g, n: g.uniform(100, 500, n),
    "exponential": lambda g, n: g.exponential(300, n),
}


def say(text: str = "") -> None:
    print(text, flush=True)


def lengths(shape: str, count: int, seed: int = 0) -> np.ndarray:
    drawn = SHAPES[shape](np.random.default_rng(seed), count)
    return np.clip(drawn, 8, 8192).astype(int)


def timed(batches: Iterable[int], seconds: float = SECONDS) -> float:
    """Return tokens a second; each item is a batch's tokens, the first is not timed."""
    iterator = iter(batches)
    next(iterator)
    tokens, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        tokens += next(iterator)
    return tokens / (time.perf_counter() - started)


def packing(arguments: argparse.Namespace, folder: Path) -> None:
    from restomod.data import pack

    say("packing, one process (targets: 99.9 % from 27 mean documents a row on, 50 M tokens/s)")
    say("(apart: how many documents came between a row's first and its last, mean)")
    heads = f"{'row':>8}{'a row':>7}{'buffer':>9}{'full':>10}{'apart':>8}{'M tok/s':>9}"
    say(f"{'documents':<26}{heads}")
    for shape in SHAPES:
        drawn = lengths(shape, arguments.documents)
        documents = [np.full(n, number, np.uint32) for number, n in enumerate(drawn)]
        for row_tokens, rows in ((2048, 4), (8192, 4), (8192, 64), (16_384, 4), (131_072, 4)):
            if row_tokens < drawn.max():
                continue
            started = time.perf_counter()
            packed = list(pack(iter(documents), row_tokens, rows * row_tokens))
            rate = drawn.sum() / (time.perf_counter() - started)
            whole = packed[: -rows - 1] or packed
            full = sum(len(row.tokens) for row in whole) / len(whole) / row_tokens
            apart = np.mean([np.ptp(row.tokens) for row in whole])
            say(
                f"{shape:<26}{row_tokens:>8,}{row_tokens / drawn.mean():>7.0f}{rows:>4} rows"
                f"{full:>10.3%}{apart:>8.0f}{rate / 1e6:>9.0f}"
            )


def masking(arguments: argparse.Namespace, folder: Path) -> None:
    from restomod.config import MaskConfig
    from restomod.data.mlm import Masker
    from restomod.data.random import keyed_generator
    from restomod.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder(folder))
    tokens = np.random.default_rng(0).choice(tokenizer.ordinary_ids, 131_072).astype(np.int32)
    say("masking at rate 0.3, a keyed generator for each row, one process (target 20 M tokens/s)")
    say(f"{'row':>8}{'tokens':>12}{'whole words':>14}   M tokens/s")
    for row in (1024, 8192, 16_384, 131_072):
        rates = []
        for whole_word in (False, True):
            masker = Masker(MaskConfig(whole_word=whole_word), tokenizer)

            def rows(masker: Masker = masker, row: int = row) -> Iterator[int]:
                for n in itertools.count():
                    masker(tokens[:row], keyed_generator(17, "mask", 0, n), 0.3)
                    yield row

            rates.append(timed(rows(), 2.0) / 1e6)
        say(f"{row:>8,}{rates[0]:>12.0f}{rates[1]:>14.0f}")


def words(generator: np.random.Generator, count: int) -> str:
    return " ".join(WORDS[n % len(WORDS)] for n in generator.zipf(1.2, size=count).tolist())


WORDS = [
    "".join(parts)
    for parts in itertools.product(
        ("", "re", "un"),
        ("mo", "ka", "ti", "se", "ba"),
        ("", "lo", "nd", "st"),
        ("", "ing", "s"),
    )
]


def tokenizer_folder(folder: Path) -> Path:
    """Train a small tokenizer once."""
    out = folder / "tokenizer"
    if not out.exists():
        generator = np.random.default_rng(1)
        texts = folder / "tokenizer.jsonl"
        texts.write_text(
            "".join(json.dumps({"text": words(generator, 300)}) + "\n" for _ in range(3000))
        )
        script = Path(__file__).parents[1] / "data_prep" / "train_tokenizer.py"
        subprocess.run(
            [sys.executable, script, "--vocab-size", "1024", "--out", out, "--input", texts],
            check=True,
            stderr=subprocess.DEVNULL,
        )
    return out


def write_streams(folder: Path, documents: int, kind: str) -> Path:
    """Write the three streams as raw or compressed token shards, or as text."""
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
            for length in lengths("log-normal, cut at 1,024", int(documents * share), number):
                if kind == "text":
                    writer.write({"text": words(generator, int(length) // 2)})
                else:
                    drawn = generator.zipf(1.3, size=length) % len(tokenizer.ordinary_ids)
                    writer.write({"tokens": tokenizer.ordinary_ids[drawn].astype(np.uint16)})
    return root


def loading(arguments: argparse.Namespace, folder: Path) -> None:
    say("loading: shards to masked batches, one worker process, M tokens/s without padding")
    say("(targets: 10 from raw shards, 2.5 from compressed ones)")
    root = write_streams(folder, arguments.documents, "raw")
    for row_tokens in (2048, 16_384, 65_536):
        rate = timed(our_batches(folder, root, row_tokens))
        say(f"  restomod, rows of {row_tokens:>6,}, raw   {rate / 1e6:>9.2f}")
    for kind in ("raw", "zstd"):
        root = write_streams(folder, arguments.documents, kind)
        rate = one_pass(folder, root, arguments.documents)
        say(f"  the same from the start, empty cache, {kind:<4}{rate / 1e6:>5.2f}")
    root = write_streams(folder, arguments.documents // 10, "text")
    on_the_fly = timed(our_batches(folder, root, 16_384))
    say(f"  restomod, text tokenised by the worker{on_the_fly / 1e6:>7.2f}")
    say(f"  tokenizers alone, one thread, as texts{tokenizers_alone(folder) / 1e6:>7.2f}")
    for kind in ("raw", "zstd"):
        root = write_streams(folder, arguments.documents, kind)
        rate = timed(streaming_batches(folder, root))
        say(f"  StreamingDataset, py1e, padded, {kind:<5}{rate / 1e6:>8.2f}")
    rate = timed(datasets_batches(folder, write_streams(folder, arguments.documents, "raw")))
    say(f"  datasets, shuffled, padded, Arrow    {rate / 1e6:>8.2f}")


def recipe_of(folder: Path, root: Path, row_tokens: int, **data: Any) -> Any:
    from restomod.config import DataConfig, PhaseConfig, Recipe, StreamConfig

    return Recipe(
        cache_dir=str(folder / "cache"),
        tokenizer=str(tokenizer_folder(folder)),
        data=DataConfig(
            streams={name: StreamConfig(path=str(root / name)) for name in STREAMS}, **data
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


def our_batches(folder: Path, root: Path, row_tokens: int) -> Iterator[int]:
    from restomod.data.loader import Loader
    from restomod.data.sources import open_sources

    recipe = recipe_of(folder, root, row_tokens, lanes=8, workers=1)
    loader = Loader(recipe, open_sources(recipe))
    for _ in loader:
        yield loader.facts.real_tokens


def one_pass(folder: Path, root: Path, documents: int) -> float:
    """Return tokens a second of reading as many documents as there are, start and unpacking
    included."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    most = lengths("log-normal, cut at 1,024", documents).sum()
    started, tokens = time.perf_counter(), 0
    for batch in our_batches(folder, root, 16_384):
        tokens += batch
        if tokens >= most:
            break
    return tokens / (time.perf_counter() - started)


def tokenizers_alone(folder: Path) -> float:
    from restomod.data.tokenizer import load_tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    backend = load_tokenizer(tokenizer_folder(folder)).backend
    generator = np.random.default_rng(5)
    texts = [words(generator, int(n) // 2) for n in lengths("log-normal, cut at 1,024", 3000)]

    def batches() -> Iterator[int]:
        while True:
            for start in range(0, len(texts), 500):
                encoded = backend.encode_batch_fast(texts[start : start + 500])
                yield sum(len(encoding.ids) for encoding in encoded)

    return timed(batches(), 3.0)


def collator(folder: Path) -> Callable[[list[Any]], int]:
    """Return what pads and masks a batch as transformers does, and counts its tokens."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder(folder)))
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id

    def batch(samples: list[Any]) -> Any:
        ids = [[cls, *np.asarray(s["tokens"]).tolist()[:1022], sep] for s in samples]
        collated = collate([{"input_ids": i} for i in ids])
        return collated, sum(map(len, ids))

    return batch


def streaming_batches(folder: Path, root: Path) -> Iterator[int]:
    from streaming import Stream, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    clean_stale_shared_memory()
    dataset = StreamingDataset(
        streams=[
            Stream(local=str(root / name), proportion=share) for name, share in STREAMS.items()
        ],
        shuffle=True,
        batch_size=32,
    )
    while True:
        for _, tokens in DataLoader(
            dataset, batch_size=32, num_workers=1, collate_fn=collator(folder), prefetch_factor=8
        ):
            yield tokens


def datasets_batches(folder: Path, root: Path) -> Iterator[int]:
    import datasets
    from streaming.base.format.mds.reader import MDSReader
    from torch.utils.data import DataLoader

    datasets.disable_progress_bars()
    saved = folder / "arrow"
    if not saved.exists():

        def samples() -> Iterator[dict[str, Any]]:
            for name in STREAMS:
                for entry in json.loads((root / name / "index.json").read_text())["shards"]:
                    reader = MDSReader.from_json(str(root / name), None, entry)
                    for n in range(entry["samples"]):
                        yield {"tokens": reader[n]["tokens"]}

        features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint16"))})
        made = datasets.Dataset.from_generator(
            samples, features=features, cache_dir=str(folder / "datasets")
        )
        made.save_to_disk(str(saved))
    dataset = datasets.load_from_disk(str(saved)).with_format("numpy").shuffle(seed=0)
    while True:
        for _, tokens in DataLoader(
            dataset, batch_size=32, num_workers=1, collate_fn=collator(folder), prefetch_factor=8
        ):
            yield tokens


def start_up(arguments: argparse.Namespace, folder: Path) -> None:
    say(
        "start-up: until the first document of each of 64 lanes (targets at 2 x 10^9: 10 s, 500 MB)"
    )
    say(f"{'documents':>15}{'shards':>8}{'restomod':>20}{'Streaming py1e':>20}{'datasets':>20}")
    for documents in (10**6, 10**7, 10**8, 10**9, 2 * 10**9):
        shards = max(20, documents // 50_000)
        cells = []
        for contender, most in ((ours_starts, 10**10), (py1e_starts, 10**8), (arrow_starts, 10**8)):
            if documents > most:
                cells.append("-")
                continue
            seconds, megabytes = in_child(contender, folder, shards, documents // shards)
            cells.append(f"{seconds:.2f} s {megabytes:,.0f} MB")
        say(f"{documents:>15,}{shards:>8,}" + "".join(f"{cell:>20}" for cell in cells))


def in_child(work: Callable[..., float], *given: Any) -> tuple[float, float]:
    """Return what `work` returns, and by how much its process grew in MB at most."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (work, *given))


def _measured(work: Callable[..., float], *given: Any) -> tuple[float, float]:
    import torch.utils.data  # what every contender imports anyway is not counted

    assert torch
    seconds = work(*given)
    return seconds, _Growth.most


class _Growth:
    """How much anonymous memory a process took since `begin`."""

    begun = most = 0.0

    @classmethod
    def begin(cls) -> None:
        cls.begun = cls.anonymous()

    @classmethod
    def end(cls) -> None:
        cls.most = max(cls.most, cls.anonymous() - cls.begun)

    @staticmethod
    def anonymous() -> float:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1e3  # type: ignore[index]


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


def ours_starts(folder: Path, shards: int, documents: int) -> float:
    import restomod.data.loader
    from restomod.config import StreamConfig
    from restomod.data.lanes import Lane, LaneSetting
    from restomod.data.sources import open_sources

    assert restomod
    root = huge_index(folder, shards, documents)
    recipe = recipe_of(folder, root, 1024, lanes=64, workers=0)
    recipe.data.streams = {"web": StreamConfig(path=str(root))}
    recipe.phases[0].mixture = {"web": 1.0}
    recipe.data.shards_open_per_rank = 1024
    tokenizer_folder(folder)
    _Growth.begin()
    started = time.perf_counter()
    sources = open_sources(recipe)
    setting = LaneSetting.of(
        recipe.seed, recipe.data, recipe.phases[0], 0, sources.streams, sources.tokenizer
    )
    lanes = [Lane(number, setting) for number in range(64)]
    for lane in lanes:
        lane.next_row()
    seconds = time.perf_counter() - started
    _Growth.end()
    return seconds


def py1e_starts(folder: Path, shards: int, documents: int) -> float:
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    _Growth.begin()
    started = time.perf_counter()
    ids = get_partitions("relaxed", shards * documents, 64, 8, 8, 1, 64)
    order = get_shuffle("py1e", np.full(shards, documents), 64, 17, 0, 1 << 18)
    ids = np.where(ids != -1, order[ids], -1)
    seconds = time.perf_counter() - started
    _Growth.end()
    assert ids.size
    return seconds


def arrow_starts(folder: Path, shards: int, documents: int) -> float:
    import datasets
    import pyarrow as pa

    table = pa.table({"id": pa.array(np.zeros(shards * documents, np.int8))})
    dataset = datasets.Dataset(table)
    _Growth.begin()
    started = time.perf_counter()
    shuffled = dataset.shuffle(seed=0)
    first = shuffled[0]
    seconds = time.perf_counter() - started
    _Growth.end()
    assert first
    return seconds


def shuffle(arguments: argparse.Namespace, folder: Path) -> None:
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    documents = 3000
    counts = {name: int(200 * share) for name, share in STREAMS.items()}
    sizes = np.full(sum(counts.values()), documents)
    domain_of_shard = np.repeat(np.arange(len(counts)), list(counts.values()))
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    total = len(shard_of)
    ours, apart = our_order(counts, documents, 64)
    say("shuffle: 200 shards of 3,000 documents in three domains, read by 64 lanes or nodes")
    say("(spread of a domain's share over batches, and how often two documents of a batch are of")
    say(" one shard, as multiples of what independent draws give; distance between neighbours as")
    say(" stored, as a share of a random pair's)")
    say(f"{'documents a batch':>18}{'':>28}{'domain spread':>15}{'same shard':>12}{'distance':>10}")
    for batch in (256, 2048, 16_384):
        ids = get_partitions("relaxed", total, 64, 1, 1, 1, batch).ravel()
        theirs = get_shuffle("py1e", sizes, 64, 17, 0, 1 << 18)[ids[ids >= 0]]
        for name, order in (("restomod, rows of 8,192", ours), ("Streaming, py1e", theirs)):
            batches = order[: len(order) // batch * batch].reshape(-1, batch)
            share = (domain_of_shard[shard_of[batches]] == 0).mean(1)
            spread = share.std() / (share.mean() * (1 - share.mean()) / batch) ** 0.5
            same = np.mean([_pairs(np.bincount(shard_of[b])) for b in batches]) / _pairs(sizes)
            distance = np.abs(np.diff(batches.astype(np.int64), axis=1)).mean() / (total / 3)
            say(f"{batch:>18,}    {name:<24}{spread:>15.2f}{same:>12.2f}{distance:>10.2f}")
    say(f"documents drawn between a row's first and its last, mean: {apart:.0f}")


def our_order(counts: dict[str, int], documents: int, lanes: int) -> tuple[np.ndarray, float]:
    """Return the documents of one epoch in the order of rows, the lanes in turn, and how far apart
    a row's documents were drawn."""
    from restomod.config import DataConfig
    from restomod.data.mixture import stream_draws
    from restomod.data.order import StreamCursor, StreamOrder
    from restomod.data.packer import Packer
    from restomod.data.random import keyed_generator

    data = DataConfig(lanes=lanes)
    orders = [StreamOrder(17, n, np.full(count, documents), data) for n, count in counts.items()]
    begins = np.cumsum([0, *counts.values()])
    each = sum(counts.values()) * documents // lanes
    drawn_lengths = lengths("log-normal, cut at 1,024", each)
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--documents", type=int, default=200_000)
    arguments = parser.parse_args()
    chosen = arguments.parts.split(",")
    unknown = set(chosen) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there is {', '.join(PARTS)}")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    say(f"python benchmarks/data.py {' '.join(sys.argv[1:])}")
    say(
        f"{date.today()}, commit {commit}, {os.cpu_count()} cores {platform.processor() or ''} "
        f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for part in chosen:
            say()
            globals()[part.replace("-", "_")](arguments, Path(folder))
    say()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    say(f"largest memory of this process: {peak / 1e3:,.0f} MB")


if __name__ == "__main__":
    main()
