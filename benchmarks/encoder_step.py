"""Our training step beside its peers', on one device, in one run.

All train the same shape on the same documents, without dropout:

- ours, eager: packed, a batch's documents in one row;
- ours, compiled: the documents of all batches in rows of one length, as the loader packs them;
- transformers' ModernBertForMaskedLM with our weights (sdpa; on CUDA flash-attn 2, which unpads
  inside, where that is installed): padded to the longest of a batch, as shipped, which computes
  logits at every position; with sparse_prediction; and with its documents sorted by length before
  they are cut into batches, the most that padding can be spared;
- torch's nn.TransformerEncoder of the same width and as many parameters, padded.

The losses of the first two kinds must agree on the first batch. A step is forward and backward; the
optimizer is timed by itself, beside torch's fused AdamW. Steps take turns, so that whatever else
the machine does falls on all, with the machine's best torch.mm between them: the share of it is
given for all products (linear layers and attention), and for the linear layers alone. Tokens
exclude padding for everybody. Memory is what a step allocates at most over what exists before it.
On a CPU all is float32 and memory reuse (`keep_freed_memory`) is on for everybody; on CUDA all run
under bf16 autocast.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000 python benchmarks/encoder_step.py --sizes 5m,17m
    python benchmarks/encoder_step.py --device cuda --sizes 150m,395m --batch 6
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import ModernBertForMaskedLM

from restomod.model.compile import compile_model
from restomod.model.config import EncoderConfig
from restomod.model.cpu import keep_freed_memory
from restomod.model.encoder import MaskedLM
from restomod.model.flops import flops_per_token, linear_flops_per_token
from restomod.model.hf import save_transformers
from restomod.model.init import initialize
from restomod.optim.stable_adamw import StableAdamW, parameter_groups

SIZES = {
    "5m": (6, 96, 3, 144, 50_368),
    "17m": (7, 256, 4, 384, 50_368),
    "32m": (10, 384, 6, 576, 50_368),
    "150m": (22, 768, 12, 1152, 50_368),
    "395m": (28, 1024, 16, 2624, 50_368),
}
"""Layers, hidden size, heads, intermediate size, vocabulary; 17m and 32m are Ettin's, 150m and 395m
ModernBERT's."""
KINDS = {"short": (16, 1024), "full": (8, 1024), "long": (1, 8192)}  # documents a batch, longest
CONTENDERS = ("ours", "compiled", "padded", "sparse", "sorted", "torch")
NAMES = {
    "ours": "restomod, eager",
    "compiled": "restomod, compiled",
    "padded": "transformers, padded",
    "sparse": "transformers, sparse_prediction",
    "sorted": "transformers, sorted by length",
    "torch": "nn.TransformerEncoder, padded",
}
MASK_RATE = 0.3
PAD, MASK = 0, 3
DEVICE = torch.device("cpu")
Lengths = list[int]
Forward = Callable[[Lengths, int, int], Tensor]
"""From the lengths of documents, a seed for their words, and the length that they are padded to by
those who pad, to the loss."""


class Contender(NamedTuple):
    """Somebody's way to train."""

    model: nn.Module
    forward: Forward
    batches: list[Lengths]
    parts: int = 1
    """Into so many a batch is cut once padded, and gradients are summed."""

    def step(self, n: int) -> None:
        """Compute the gradients of batch n."""
        batch = self.batches[n]
        size = -(-len(batch) // self.parts)
        for start in range(0, len(batch), size):
            self.loss(batch[start : start + size], n, max(batch)).backward()
        self.model.zero_grad()
        settle()

    def loss(self, lengths: Lengths, seed: int, longest: int) -> Tensor:
        """Return the loss on documents of such lengths, in the precision of the device."""
        half = DEVICE.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if half else contextlib.nullcontext():
            return self.forward(lengths, seed, longest)


def settle() -> None:
    """Wait until the device has done what it was asked."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def batches_of(kind: str, batches: int, times: int = 1) -> list[Lengths]:
    """Lengths of the documents of every batch, `times` as many as on a CPU."""
    size, longest = KINDS[kind]
    size *= times
    if kind != "short":
        return [[longest] * size] * batches
    generator = torch.Generator().manual_seed(0)
    drawn = torch.empty(batches, size).log_normal_(5.3, 0.9, generator=generator)
    return drawn.long().clamp(2, longest).tolist()


def rows_of(batches: list[Lengths]) -> list[Lengths]:
    """The same documents in as many rows of one length; those on an edge are cut in two."""
    bounds = set(accumulate(chain(*batches)))
    row = -(-max(bounds) // len(batches))
    edges = sorted(bounds | {row * n for n in range(1, len(batches) + 1)})
    pieces: list[Lengths] = [[] for _ in batches]
    for start, end in zip([0, *edges[:-1]], edges, strict=True):
        pieces[start // row].append(end - start)
    return pieces


def words(lengths: Lengths, vocab_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Token ids [T], and labels [T]: -100 where nothing is masked."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, vocab_size, (sum(lengths),), generator=generator)
    masked = torch.rand(ids.shape, generator=generator) < MASK_RATE
    return ids.masked_fill(masked, MASK).to(DEVICE), ids.masked_fill(~masked, -100).to(DEVICE)


def padded(lengths: Lengths, vocab_size: int, seed: int, longest: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels [documents, longest], a document a row."""
    ids, labels = (x.split(lengths) for x in words(lengths, vocab_size, seed))
    columns = [
        torch.stack([F.pad(part, (0, longest - len(part)), value=value) for part in parts])
        for parts, value in ((ids, PAD), (labels, -100))
    ]
    return columns[0], columns[1]


def ours(model: MaskedLM, most: int) -> Forward:
    """Return the loss of our model on at most so many packed documents."""

    def forward(lengths: Lengths, seed: int, longest: int) -> Tensor:
        ids, labels = words(lengths, model.config.vocab_size, seed)
        positions = (labels != -100).nonzero().squeeze(1)
        bounds = [0, *accumulate(lengths)]
        bounds += [bounds[-1]] * (most - len(lengths))
        batch: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": torch.cat([torch.arange(x).int() for x in lengths]).to(DEVICE),
            "cu_seqlens": torch.tensor(bounds, dtype=torch.int32, device=DEVICE),
            "max_seqlen": max(longest for _, longest in KINDS.values()),
            "masked_positions": positions,
            "labels": labels[positions],
            "row_ids": torch.tensor([seed], device=DEVICE),
        }
        sums = model(batch)
        loss: Tensor = sums.objective / sums.predictions
        return loss

    return forward


def theirs(model: nn.Module, vocab_size: int) -> Forward:
    """Return the loss of transformers' model on padded documents."""

    def forward(lengths: Lengths, seed: int, longest: int) -> Tensor:
        ids, labels = padded(lengths, vocab_size, seed, longest)
        loss: Tensor = model(input_ids=ids, attention_mask=(ids != PAD).long(), labels=labels).loss
        return loss

    return forward


class Plain(nn.Module):
    """torch's encoder, with logits at every position."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            config.hidden_size,
            config.heads,
            3 * config.intermediate_size // 2,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.vocab_size = config.vocab_size
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.decoder.weight = self.embedding.weight

    def forward(self, lengths: Lengths, seed: int, longest: int) -> Tensor:
        """Return the loss on padded documents."""
        ids, labels = padded(lengths, self.vocab_size, seed, longest)
        hidden = self.layers(self.embedding(ids), src_key_padding_mask=ids == PAD)
        return F.cross_entropy(self.decoder(hidden).flatten(0, 1), labels.flatten())


def contenders_of(
    names: list[str], config: EncoderConfig, batches: list[Lengths], parts: int
) -> dict[str, Contender]:
    """Return those named, the padding ones cutting their batches into so many parts; ours and
    transformers' with the same weights."""
    model = MaskedLM(config).train()
    initialize(model, seed=0)
    model.to(DEVICE)
    unpads = DEVICE.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    made: dict[str, Contender] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_transformers(model, folder)
        for name in names:
            if name == "ours":
                made[name] = Contender(model, ours(model, len(batches[0])), batches)
            elif name == "compiled":
                twin = MaskedLM(config).to(DEVICE).train()
                twin.load_state_dict(model.state_dict())
                compile_model(twin, DEVICE.type, Path(tempfile.gettempdir()))
                rows = rows_of(batches)
                made[name] = Contender(twin, ours(twin, max(map(len, rows))), rows)
            elif name == "torch":
                plain = Plain(config).to(DEVICE).train()
                made[name] = Contender(plain, plain, batches, parts)
            else:
                peer = ModernBertForMaskedLM.from_pretrained(
                    folder,
                    sparse_prediction=name == "sparse",
                    reference_compile=False,
                    attn_implementation="flash_attention_2" if unpads else "sdpa",
                )
                peer.to(DEVICE).train()
                size, lengths = len(batches[0]), sorted(chain(*batches[1:]))
                cut = [lengths[n : n + size] for n in range(0, len(lengths), size)]
                made[name] = Contender(
                    peer,
                    theirs(peer, config.vocab_size),
                    [batches[0], *cut] if name == "sorted" else batches,
                    parts,
                )
    return made


def check_losses(contenders: dict[str, Contender]) -> None:
    """Raise RuntimeError unless all with our weights have the same loss on the first batch."""
    batch = next(iter(contenders.values())).batches[0]

    def loss(name: str, lengths: Lengths) -> float:
        # What is compiled is compiled for gradients; the others' graphs may be large.
        with torch.set_grad_enabled(name == "compiled"):
            return float(contenders[name].loss(lengths, 0, max(lengths)).detach())

    others = contenders.keys() - {"torch", "compiled"}
    losses = {name: loss(name, batch) for name in others}
    if {"compiled", "ours"} <= contenders.keys():  # compiled code is for rows of one length
        row = contenders["compiled"].batches[0]
        losses["compiled"] = losses["ours"] + loss("compiled", row) - loss("ours", row)
    bound = 1e-4 if DEVICE.type == "cpu" else 0.05  # bf16 rounds in other places
    if losses and max(losses.values()) - min(losses.values()) > bound:
        raise RuntimeError(f"not the same model: losses {losses}")


def peak_bytes(contender: Contender) -> int:
    """Return the most that a step on the first batch allocates over what exists before it."""
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender.step(0)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        contender.step(0)
    return peak_of(profiler)


def peak_of(profiler: profile) -> int:
    """Return the most that existed on the CPU while memory was profiled, over what did before."""
    with tempfile.NamedTemporaryFile(suffix=".json") as trace:
        profiler.export_chrome_trace(trace.name)
        events = [
            (event["ts"], event["args"]["Total Allocated"], event["args"]["Bytes"])
            for event in json.loads(Path(trace.name).read_text())["traceEvents"]
            if event["name"] == "[memory]"
        ]
    _, total, size = min(events)
    return int(max(event[1] for event in events) - (total - size))


def compare_optimizers(model: nn.Module, rounds: int) -> str:
    """Time a step of StableAdamW beside torch's fused AdamW on the model's parameters."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "eager": StableAdamW(parameter_groups(model, 1e-5), lr=1e-6, lr_max=1e-3),
        "compiled": StableAdamW(parameter_groups(model, 1e-5), lr=1e-6, lr_max=1e-3, compiled=True),
        "fused": torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for n in range(4 * rounds + 2):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            settle()
            if n > 1:
                seconds[name].append(time.perf_counter() - start)
    median = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    return (
        f"  optimizer: torch.optim.AdamW(fused=True) {median['fused']:.1f} ms; StableAdamW "
        f"{median['eager']:.1f} ms, {median['eager'] / median['fused']:.2f}x; compiled "
        f"{median['compiled']:.1f} ms, {median['compiled'] / median['fused']:.2f}x (medians)"
    )


def best_mm(seconds: float = 0.4) -> float:
    """Best FLOP/s of torch.mm over square sizes and a few attempts."""
    best = 0.0
    cuda = DEVICE.type == "cuda"
    for n in (4096, 8192) if cuda else (1024, 2048):
        a = torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16 if cuda else torch.float32)
        out = torch.empty_like(a)
        end = time.perf_counter() + seconds / 2
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, a, out=out)
            settle()
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def compare(
    size: str, kind: str, names: list[str], rounds: int, times: int
) -> tuple[list[str], float]:
    """Time the contenders on one size and one kind of documents.

    Returns lines of a report, and our seconds per FLOP and token, or 0 without us.
    """
    fields = ("layers", "hidden_size", "heads", "intermediate_size", "vocab_size")
    shape = dict(zip(fields, SIZES[size], strict=True))
    config = EncoderConfig(**shape, attention_dropout=0.0, pad_id=PAD, cls_id=1, sep_id=2)
    batches = batches_of(kind, rounds + 1, times)
    if kind != "short":
        names = [name for name in names if name != "sorted"]
    torch.compiler.reset()
    # Padded, 8 documents of the 150 M model and its twins want more than 24 GB of memory.
    parts = -(-len(batches[0]) // 4) if size == "150m" and DEVICE.type == "cpu" else 1
    contenders = contenders_of(names, config, batches, parts)
    check_losses(contenders)
    parameters = sum(p.numel() for p in next(iter(contenders.values())).model.parameters())
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    mm = 0.0
    peaks = {}
    for name, contender in contenders.items():
        if name in ("ours", "compiled"):
            contender.step(0)  # code is compiled, memory settles
        peaks[name] = peak_bytes(contender)
    for n in range(1, rounds + 1):
        for name, contender in contenders.items():
            mm = max(mm, best_mm())
            start = time.perf_counter()
            contender.step(n)
            seconds[name].append(time.perf_counter() - start)
    documents = list(chain(*batches[1:]))
    padding = 1 - sum(documents) / sum(len(batch) * max(batch) for batch in batches[1:])
    lines = [
        f"{size} ({parameters / 1e6:.1f} M parameters), {kind} documents: {len(batches[0])} a "
        f"batch, {rounds} batches, mean length "
        f"{statistics.mean(documents):.0f}, {padding:.0%} of the padded batches is padding; "
        f"best torch.mm {mm / 1e9:.0f} GFLOP/s"
        + (f"; who pads takes a batch in {parts} parts" if parts > 1 else ""),
        f"  {'':<34}{'tokens/s':>9}{'(median)':>10}{'ours / this':>13}{'(median)':>10}"
        f"{'of torch.mm':>13}{'(linear)':>10}{'memory':>10}",
    ]
    flops = flops_per_token(config, config.vocab_size, documents, MASK_RATE)
    linear = linear_flops_per_token(config, config.vocab_size, MASK_RATE)
    totals: dict[str, tuple[float, float]] = {}
    for name, times in seconds.items():
        tokens = [sum(batch) for batch in contenders[name].batches[1:]]
        middle = statistics.median(t / s for t, s in zip(tokens, times, strict=True))
        totals[name] = (sum(tokens) / sum(times), middle)
    best = max((totals[name] for name in ("ours", "compiled") if name in totals), default=(0, 0))
    for name, (total, middle) in totals.items():
        lines.append(
            f"  {NAMES[name]:<34}{total:>9.0f}{middle:>10.0f}{best[0] / total:>12.2f}x"
            f"{best[1] / middle:>9.2f}x{flops * total / mm:>12.0%}{linear * total / mm:>10.0%}"
            f"{peaks[name] / 1e9:>8.2f} GB"
        )
    if kind == "short" and "ours" in contenders:
        model = contenders["ours"].model
        contenders.clear()
        lines.append(compare_optimizers(model, rounds))
    return lines, 1 / (flops * best[0]) if best[0] else 0.0


def machine() -> list[str]:
    """Describe what this runs on, without names or paths."""
    root = Path(__file__).parent
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True
    ).stdout.strip()
    if DEVICE.type == "cuda":
        found = [x for x in ("flash_attn", "flash_attn_interface") if importlib.util.find_spec(x)]
        return [
            f"commit {commit or 'unknown'}; {date.today()}; torch {torch.__version__}, "
            f"transformers {transformers.__version__}",
            f"{torch.cuda.get_device_name()}; bf16 autocast; {', '.join(found) or 'no flash-attn'}",
        ]
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
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="of %(default)s")
    parser.add_argument("--rounds", type=int, default=4, help="timed steps of each contender")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=1, help="so many times the CPU's documents")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    global DEVICE
    DEVICE = torch.device(arguments.device)
    names = arguments.contenders.split(",")
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    command = f"python benchmarks/encoder_step.py {' '.join(sys.argv[1:])}"
    policy = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    command = " ".join([*(f"{x}={os.environ[x]}" for x in policy if x in os.environ), command])
    lines = [command, *machine()]
    print("\n".join(lines), flush=True)
    for size in arguments.sizes.split(","):
        costs = {}
        for kind in arguments.kinds.split(","):
            report, costs[kind] = compare(size, kind, names, arguments.rounds, arguments.batch)
            if kind == "long" and costs.get("full"):
                report.append(
                    f"  a token of 8,192 costs {costs['long'] / costs['full']:.2f} times what the "
                    "FLOPs say beside one of 1,024"
                )
            print("\n".join(["", *report]), flush=True)
            lines += ["", *report]
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
