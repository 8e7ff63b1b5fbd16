"""Our training step beside transformers' ModernBertForMaskedLM, on the CPU, in one run.

Both train the same weights on the same documents, without dropout: ours packed, theirs padded to
the longest of a batch (sdpa), as shipped (logits at every position) and with sparse_prediction;
the losses of the first batch must agree. A step is forward and backward; the optimizer is timed by
itself, ours beside torch's fused AdamW. Steps take turns, so that whatever else the machine does
falls on all, and best and median of each are reported, beside the machine's best torch.mm of the
same minutes. Memory reuse (`keep_freed_memory`) is on for all of them.

    python benchmarks/encoder_step.py --sizes 5m,17m --out benchmarks/results/encoder-step-cpu.txt
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import ModernBertForMaskedLM

from restomod.model.config import EncoderConfig
from restomod.model.cpu import keep_freed_memory
from restomod.model.encoder import MaskedLM
from restomod.model.flops import flops_per_token, linear_flops_per_token
from restomod.model.hf import save_transformers
from restomod.model.init import initialize
from restomod.optim.stable_adamw import StableAdamW, parameter_groups

SIZES = {
    "5m": (6, 256, 4, 384, 50_368),
    "17m": (8, 384, 6, 576, 50_368),
    "150m": (22, 768, 12, 1152, 50_368),
}  # layers, hidden size, heads, intermediate size, vocabulary
DOCUMENTS = {"variable": 16, "full": 8}  # a batch
LONGEST, MASK_RATE = 1024, 0.3
Step = Callable[[int], float]


def lengths_of(kind: str, batches: int) -> list[list[int]]:
    """Lengths of the documents of every batch."""
    if kind == "full":
        return [[LONGEST] * DOCUMENTS[kind]] * batches
    generator = torch.Generator().manual_seed(0)
    drawn = torch.empty(batches, DOCUMENTS[kind]).log_normal_(5.3, 0.9, generator=generator)
    return drawn.long().clamp(2, LONGEST).tolist()


def documents(lengths: list[int], vocab_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Token ids [T], and labels [T]: -100 where nothing is masked."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, vocab_size, (sum(lengths),), generator=generator)
    masked = torch.rand(ids.shape, generator=generator) < MASK_RATE
    return ids.masked_fill(masked, 3), ids.masked_fill(~masked, -100)


def our_step(model: MaskedLM, batches: list[list[int]]) -> Step:
    """Return a step of our model: it trains on batch n and returns the loss."""
    config = model.train().config

    def step(n: int) -> float:
        lengths = batches[n]
        ids, labels = documents(lengths, config.vocab_size, seed=n)
        positions = (labels != -100).nonzero().squeeze(1)
        batch: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": torch.cat([torch.arange(x, dtype=torch.int32) for x in lengths]),
            "cu_seqlens": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
            "max_seqlen": LONGEST,
            "masked_positions": positions,
            "labels": labels[positions],
            "row_ids": torch.tensor([n]),
        }
        sums = model(batch)
        loss = sums.objective / sums.predictions
        loss.backward()
        model.zero_grad()
        return float(loss.detach())

    return step


def their_step(model: MaskedLM, batches: list[list[int]], sparse: bool) -> Step:
    """Return a step of transformers' model with the same weights, on padded batches."""
    vocab_size = model.config.vocab_size
    with tempfile.TemporaryDirectory() as folder:
        save_transformers(model, folder)
        theirs = ModernBertForMaskedLM.from_pretrained(
            folder, sparse_prediction=sparse, reference_compile=False, attn_implementation="sdpa"
        ).train()

    def step(n: int) -> float:
        ids, labels = (x.split(batches[n]) for x in documents(batches[n], vocab_size, n))
        pad = torch.nn.utils.rnn.pad_sequence
        inputs = pad(ids, batch_first=True)
        loss = theirs(
            input_ids=inputs,
            attention_mask=(inputs != 0).long(),
            labels=pad(labels, batch_first=True, padding_value=-100),
        ).loss
        loss.backward()
        theirs.zero_grad()
        return float(loss.detach())

    return step


def compare_optimizers(model: MaskedLM, rounds: int) -> str:
    """Time a step of StableAdamW beside torch's fused AdamW on the model's parameters."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    stable = StableAdamW(parameter_groups(model, 1e-5), lr=1e-6, lr_max=1e-3)
    fused = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    seconds: dict[str, list[float]] = {"stable": [], "fused": []}
    for n in range(4 * rounds + 2):
        for name, optimizer in (("stable", stable), ("fused", fused)):
            start = time.perf_counter()
            optimizer.step()
            if n > 1:
                seconds[name].append(time.perf_counter() - start)
    ours, theirs = (statistics.median(times) for times in seconds.values())
    return (
        f"  optimizer: StableAdamW {1e3 * ours:.1f} ms, torch.optim.AdamW(fused=True) "
        f"{1e3 * theirs:.1f} ms: {ours / theirs:.2f}x (medians)"
    )


def best_mm(seconds: float = 0.4) -> float:
    """Best FLOP/s of torch.mm over square sizes and a few attempts."""
    best = 0.0
    for n in (1024, 2048):
        a, out = torch.randn(n, n), torch.empty(n, n)
        end = time.perf_counter() + seconds / 2
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, a, out=out)
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def compare(size: str, kind: str, rounds: int) -> list[str]:
    """Time all contenders on one size and one kind of documents; return lines of a report."""
    names = ("layers", "hidden_size", "heads", "intermediate_size", "vocab_size")
    shape = dict(zip(names, SIZES[size], strict=True))
    config = EncoderConfig(**shape, attention_dropout=0.0, pad_id=0, cls_id=1, sep_id=2)
    model = MaskedLM(config)
    initialize(model, seed=0)
    batches = lengths_of(kind, rounds + 1)
    contenders: dict[str, Step] = {
        "restomod": our_step(model, batches),
        "transformers": their_step(model, batches, sparse=False),
        "transformers, sparse": their_step(model, batches, sparse=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, float] = {}
    peak = 0.0
    for n in range(rounds + 1):
        for name, step in contenders.items():
            if name == "restomod":
                for _ in range(2 if n == 0 else 0):  # memory settles
                    step(n)
                peak = max(peak, best_mm())
            start = time.perf_counter()
            losses[name] = step(n)
            if n:
                seconds[name].append((time.perf_counter() - start) / sum(batches[n]))
        if max(losses.values()) - min(losses.values()) > 1e-4:
            raise RuntimeError(f"not the same model: losses {losses}")
    slots = sum(DOCUMENTS[kind] * max(batch) for batch in batches[1:])
    lines = [
        f"{size}, {kind} documents: {DOCUMENTS[kind]} a batch, {rounds} batches, "
        f"mean length {statistics.mean(x for b in batches[1:] for x in b):.0f}, "
        f"padding {1 - sum(map(sum, batches[1:])) / slots:.0%} of the padded batches; "
        f"best torch.mm {peak / 1e9:.0f} GFLOP/s",
        f"  {'':<30}{'best':>12}{'median':>12}{'ours / this':>13}{'(median)':>10}  last loss",
    ]
    ours = seconds["restomod"]
    for name, times in seconds.items():
        lines.append(
            f"  {name:<30}{1 / min(times):>8.0f} t/s{1 / statistics.median(times):>8.0f} t/s"
            f"{min(times) / min(ours):>12.2f}x"
            f"{statistics.median(times) / statistics.median(ours):>9.2f}x  {losses[name]:.3f}"
        )
    lengths = [x for batch in batches[1:] for x in batch]
    for label, flops in (
        ("linear layers", linear_flops_per_token(config, config.vocab_size, MASK_RATE)),
        ("with attention", flops_per_token(config, config.vocab_size, lengths, MASK_RATE)),
    ):
        lines.append(
            f"  ours, {label}: {flops / min(ours) / 1e9:.0f} GFLOP/s at best, "
            f"{flops / min(ours) / peak:.0%} of torch.mm; "
            f"median {flops / statistics.median(ours) / peak:.0%}"
        )
    return [*lines, compare_optimizers(model, rounds)]


def machine() -> list[str]:
    """Describe what this runs on, without names or paths."""
    root = Path(__file__).parent
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True
    ).stdout.strip()
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return [
        f"commit {commit or 'unknown'}; {date.today()}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        f"{cpu}; {os.cpu_count()} cores, {torch.get_num_threads()} threads; float32",
    ]


def main() -> None:
    """Run the comparison and print it; with --out, write it to a file too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", default="17m", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--kinds", default="variable,full")
    parser.add_argument("--rounds", type=int, default=4, help="timed steps of each contender")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    command = f"python benchmarks/encoder_step.py {' '.join(sys.argv[1:])}"
    lines = [command, *machine()]
    print("\n".join(lines), flush=True)
    for size in arguments.sizes.split(","):
        for kind in arguments.kinds.split(","):
            report = ["", *compare(size, kind, arguments.rounds)]
            print("\n".join(report), flush=True)
            lines += report
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
