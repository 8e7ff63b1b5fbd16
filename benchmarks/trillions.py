"""Two trillion tokens through the system, on paper, at 64 and 512 H100s.

In: benchmarks' results. Out: the tables of docs/scale.md, which benchmarks/page.py writes. Every
figure follows from `ASSUMED` (said there, with its source), from `Measured`, or from the
repository's own models of memory, FLOPs and communication. Nothing ran at this size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from restomod.config import ModelConfig
from restomod.gpus import gpu_named
from restomod.model.flops import attention_flops_per_token, linear_flops_per_token
from restomod.model.memory import FLOAT32, parameters
from restomod.tools.plan.scaling import Cluster, simulate, workload

GPUS = (64, 512)
VOCABULARY = 50_368
PHASES = ((1.719e12, 1024), (300e9, 8192))
"""Tokens and context of ModernBERT's phases; extension and decay together."""


@dataclass(frozen=True)
class Assumed:
    """What nobody measured here."""

    tokens_per_document: int = 1000
    """Of web text; 2 x 10^9 documents, as the start-up's benchmark has."""
    stored_bytes: float = 2.0
    """uint16."""
    zstd_bytes: float = 1.03
    """Technical prose, a vocabulary of 50,368 (benchmarks/results/trillions-shards.txt)."""
    shard_bytes: float = 64e6
    index_bytes: float = 560.0
    """Of a shard in index.json (the same log)."""
    streams: int = 5
    lanes_per_gpu: int = 2
    shuffle_shards: int = 4
    text_bytes: float = 4.4
    """Of English web text, a token."""
    failures_per_gpu_hour: float = 419 / (54 * 24 * 16_384)
    """Unexpected interruptions of Llama 3's 54 days on 16,384 H100s (arXiv 2407.21783, 3.3.4)."""
    restart_s: float = 300.0
    """Requeue, start-up, loading, compiled code from the cache."""
    steps_between_checkpoints: int = 1000
    batch_tokens: int = 4608 * 1024
    """ModernBERT-base's batch: 4.72 M."""
    mfu: tuple[float, float] = (0.26, 0.40)
    """ModernBERT-base's published one (26 % at 1,024, docs/plan.md), and our aim."""
    price: float = 2.5
    """Dollars for a GPU hour."""


@dataclass(frozen=True)
class Measured:
    """What benchmarks found, on a machine of two cores."""

    prepared_tokens_per_core_s: float
    """Reading, near duplicates, tokenising and writing, of one core; the tokenizer's training left
    out (benchmarks/results/prepare.txt)."""
    loader_tokens_s: float
    """Of one loader process (loading.txt, rows of 65,536)."""
    start_s: float
    start_mb: float
    """To the first row of each of 64 lanes, 2 x 10^9 documents in 40,000 shards (start-up.txt)."""

    @classmethod
    def of(cls, results: dict[str, dict[str, Any]]) -> Measured:
        """Raises KeyError where a benchmark has failed."""
        prepare, loading, start = (
            results[part]["figures"] for part in ("prepare", "loading", "start-up")
        )
        return cls(
            prepare["all stages but the tokenizer's training, tokens/s and core"],
            loading["tokens/s, restomod, rows of 65,536"],
            start["restomod, s"],
            start["restomod, MB"],
        )


ASSUMED = Assumed()


def total_flops(model: ModelConfig) -> float:
    """Return what all phases compute, with full chunks: the most that attention can cost."""
    return sum(
        tokens
        * (
            linear_flops_per_token(model, VOCABULARY, 0.3)
            + attention_flops_per_token(model, [context], False)
        )
        for tokens, context in PHASES
    )


def at_rest(measured: Measured) -> list[tuple[str, str, str]]:
    """Return rows (what, how much, from what) that no number of GPUs changes."""
    a = ASSUMED
    tokens = sum(tokens for tokens, _ in PHASES)
    documents = tokens / a.tokens_per_document
    shards = tokens * a.stored_bytes / a.shard_bytes
    weights = sum(parameters(ModelConfig(), VOCABULARY))
    core_hours = tokens / measured.prepared_tokens_per_core_s / 3600
    return [
        (
            "tokens, documents",
            f"{tokens / 1e12:.2f} T, {documents / 1e9:.1f} x 10^9",
            f"{a.tokens_per_document:,} tokens a document",
        ),
        ("raw text", _terabytes(tokens * a.text_bytes), f"{a.text_bytes:g} bytes a token"),
        (
            "shards, raw",
            f"{_terabytes(tokens * a.stored_bytes)} in {shards:,.0f}",
            f"{a.stored_bytes:g} bytes a token, {a.shard_bytes / 1e6:g} MB each",
        ),
        (
            "shards, zstd",
            _terabytes(tokens * a.zstd_bytes),
            f"{a.zstd_bytes:g} bytes a token, as measured on technical prose",
        ),
        (
            "index.json, all streams",
            f"{shards * a.index_bytes / 1e6:.0f} MB",
            f"{a.index_bytes:g} bytes a shard",
        ),
        (
            "preparation",
            f"{core_hours / 1000:.1f} thousand core hours",
            f"{measured.prepared_tokens_per_core_s / 1e3:.0f} k tokens/s a core",
        ),
        (
            "a checkpoint, base",
            f"{3 * FLOAT32 * weights / 1e9:.2f} GB",
            "weights and two moments in float32",
        ),
    ]


def _terabytes(size: float) -> str:
    return f"{size / 1e12:.1f} TB"


def training(gpus: int, measured: Measured) -> list[tuple[str, str]]:
    """Return rows (what, how much) for base on so many H100s."""
    a, model, gpu = ASSUMED, ModelConfig(), gpu_named("h100")
    tokens = sum(tokens for tokens, _ in PHASES)
    flops = total_flops(model)
    nodes = gpus // 8
    hours = [flops / (gpus * gpu.flops * mfu) / 3600 for mfu in a.mfu]
    speeds = [tokens / hour / 3600 for hour in hours]
    speed = speeds[1]
    weights = sum(parameters(model, VOCABULARY))
    checkpoint = 3 * FLOAT32 * weights
    between_s = a.steps_between_checkpoints * a.batch_tokens / speed
    work = workload("base", model, VOCABULARY, a.batch_tokens, a.batch_tokens // gpus, speed / gpus)
    step = simulate("ddp", work, gpus, Cluster())
    failures = gpus * a.failures_per_gpu_hour
    lost_s = between_s / 2 + a.restart_s
    lanes = gpus * a.lanes_per_gpu
    shards = lanes / nodes * a.streams * a.shuffle_shards * 2
    node = speed / nodes
    mean_mb = checkpoint / between_s / 1e6
    compute, exposed = step.compute_s * 1e3, step.exposed_s * 1e3
    return [
        ("hours at 26 %, at 40 %", " / ".join(f"{hour:,.1f}" for hour in hours)),
        ("cost, $2.50 a GPU hour", " / ".join(f"${hour * gpus * a.price:,.0f}" for hour in hours)),
        ("tokens/s, all GPUs", " / ".join(f"{s / 1e6:,.1f} M" for s in speeds)),
        ("slots of a GPU in a step of 4.72 M", f"{a.batch_tokens // gpus:,}"),
        ("a step's compute, exposed communication", f"{compute:.0f} ms, {exposed:.1f} ms (DDP)"),
        ("share of a step that computes", f"{step.efficiency:.0%}"),
        ("a node reads", f"{node / 1e6:.1f} M tokens/s, {node * a.zstd_bytes / 1e6:.1f} MB/s"),
        (
            "loader processes that it needs",
            f"{math.ceil(node / measured.loader_tokens_s)} of 8 or more",
        ),
        ("all nodes read", f"{speed * a.zstd_bytes / 1e6:,.0f} MB/s"),
        ("lanes", f"{lanes:,}"),
        ("shards open on a node", f"{shards:,.0f}, {shards * a.shard_bytes / 1e9:.0f} GB of cache"),
        (
            "start-up of the data path",
            f"{measured.start_s:.1f} s, {measured.start_mb:.0f} MB for 64 lanes",
        ),
        ("1,000 steps, to a checkpoint", f"{between_s / 60:.1f} minutes, {mean_mb:.0f} MB/s of it"),
        (
            "unexpected failures",
            f"one in {1 / failures:,.0f} hours, {failures * hours[1]:.2f} in all",
        ),
        ("lost to each", f"{lost_s / 60:.1f} minutes: half an interval, and five to restart"),
        ("lost in all", f"{failures * lost_s / 3600:.2%} of the run"),
    ]


def tables(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return both tables by name, in Markdown."""
    measured = Measured.of(results)
    rest = ["| what | | from |", "| --- | --- | --- |"]
    rest += [f"| {' | '.join(row)} |" for row in at_rest(measured)]
    columns = [training(gpus, measured) for gpus in GPUS]
    heads = [f"{gpus} H100s" for gpus in GPUS]
    trained = [f"| base | {' | '.join(heads)} |", "| --- | --- | --- |"]
    for rows in zip(*columns, strict=True):
        trained.append(f"| {rows[0][0]} | {' | '.join(value for _, value in rows)} |")
    return {"at rest": "\n".join(rest), "in training": "\n".join(trained)}
