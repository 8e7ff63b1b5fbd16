"""Our training step beside its peers', on one device, in one run.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000 python -m benchmarks.training.step --sizes 17m
    python -m benchmarks.training.step --device cuda --sizes 150m,395m --batch 6

All train the same shape on the same documents, without dropout:

- ours, eager: packed, a batch's documents in one row;
- ours, compiled: the documents of all batches in rows of one length, as the loader packs them;
- transformers' ModernBertForMaskedLM with our weights (sdpa; on CUDA flash-attn 2, which unpads
  inside, where that is installed): padded to the longest of a batch, as shipped, which computes
  logits at every position; with sparse_prediction; and with its documents sorted by length before
  they are cut into batches, the most that padding can be spared;
- torch's nn.TransformerEncoder of the same width and as many parameters, padded.

The losses of all with our weights must agree on the first batch (that of the compiled model where
the eager one runs, too). A step is forward and backward. Steps take turns, so that whatever else
the machine does falls on all, with the machine's best torch.mm between them: the share of it is
given for all products (linear layers and attention), and for the linear layers alone. Tokens
exclude padding for everybody. Memory is what a step allocates at most over what exists before it.
On a CPU all is float32 and memory reuse (`keep_freed_memory`) is on for everybody; on CUDA all run
under bf16 autocast.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import chain

import torch

from benchmarks.record import Report, parser_of
from benchmarks.training.contenders import NAMES, OURS, Contender, check_losses, contenders_of
from benchmarks.training.documents import (
    KINDS,
    MASK_RATE,
    SIZES,
    batches_of,
    encoder_config,
)
from benchmarks.training.measure import best_mm, device_name, peak_bytes
from restomod.model.cpu import keep_freed_memory
from restomod.model.flops import flops_per_token, linear_flops_per_token

PADDED_TOGETHER = 4
"""Documents that those who pad take at once at 150 M on a CPU: eight want more than 24 GB."""


def compare(report: Report, size: str, kind: str, options: argparse.Namespace) -> float:
    """Time the contenders on one size and one kind of documents; return our seconds per FLOP and
    token, or 0 without us."""
    device = torch.device(options.device)
    config = encoder_config(size, attention_dropout=0.0)
    rounds = max(1, options.rounds // 3) if kind == "long" else options.rounds
    batches = batches_of(kind, rounds + 1, options.batch)
    names = options.contenders.split(",")
    if kind in options.alone.split(","):
        names = [name for name in names if name in OURS]
    if kind != "short":
        names = [name for name in names if name != "sorted"]
    torch.compiler.reset()
    many = size == "150m" and device.type == "cpu"
    parts = -(-len(batches[0]) // PADDED_TOGETHER) if many else 1
    contenders = contenders_of(names, config, batches, parts, device)
    check_losses(contenders)
    peaks = {}
    for name, contender in contenders.items():
        if name in OURS:
            contender.step(0)  # code is compiled, memory settles
        if options.memory:
            peaks[name] = peak_bytes(lambda c=contender: c.step(0), device)  # type: ignore[misc]
    seconds, mm = in_turns(contenders, rounds, device)
    documents = list(chain(*batches[1:]))
    padding = 1 - sum(documents) / sum(len(batch) * max(batch) for batch in batches[1:])
    parameters = sum(p.numel() for p in next(iter(contenders.values())).model.parameters())
    table = report.table(
        f"{size} ({parameters / 1e6:.1f} M parameters), {kind} documents: {len(batches[0])} a "
        f"batch, {rounds} batches, mean length {statistics.mean(documents):.0f}, {padding:.0%} of "
        f"the padded batches is padding; best torch.mm {mm / 1e9:.0f} GFLOP/s"
        + (f"; who pads takes a batch in {parts} parts" if parts > 1 else ""),
        "contender",
        "tokens/s",
        "median",
        "ours / this",
        "of torch.mm",
        "linear layers",
        "memory",
    )
    flops = flops_per_token(config, config.vocab_size, documents, MASK_RATE)
    linear = linear_flops_per_token(config, config.vocab_size, MASK_RATE)
    totals = {}
    for name, times in seconds.items():
        tokens = [sum(batch) for batch in contenders[name].batches[1:]]
        middle = statistics.median(t / s for t, s in zip(tokens, times, strict=True))
        totals[name] = (sum(tokens) / sum(times), middle)
    best = max((totals[name][0] for name in OURS if name in totals), default=0.0)
    for name, (total, middle) in totals.items():
        table.row(
            NAMES[name],
            f"{total:,.0f}",
            f"{middle:,.0f}",
            f"{best / total:.2f}x",
            f"{flops * total / mm:.0%}",
            f"{linear * total / mm:.0%}",
            f"{peaks[name] / 1e9:.2f} GB" if name in peaks else "",
        )
        report.figures[f"{size}, {kind}, {name}: tokens/s"] = total
        if best and name not in OURS:
            report.figures[f"{size}, {kind}: times {name}"] = best / total
    report.figures[f"{size}, {kind}: linear layers, of torch.mm"] = linear * best / mm
    report.figures[f"{size}, {kind}: torch.mm, FLOP/s"] = mm
    return 1 / (flops * best) if best else 0.0


def in_turns(
    contenders: dict[str, Contender], rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of each one's steps, and the best FLOP/s of torch.mm between them."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    mm = 0.0
    for n in range(1, rounds + 1):
        for name, contender in contenders.items():
            mm = max(mm, best_mm(device))
            start = time.perf_counter()
            contender.step(n)
            seconds[name].append(time.perf_counter() - start)
    return seconds, mm


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", default="17m", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of %(default)s")
    parser.add_argument("--contenders", default=",".join(NAMES), help="of %(default)s")
    parser.add_argument("--alone", default="", help="kinds at which only ours run")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps; long: a third of them")
    parser.add_argument("--batch", type=float, default=1, help="so many times the documents")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.kinds, options.contenders = "tiny", "short", "ours,padded,sparse"
        options.batch, options.rounds, options.memory = 0.25, 1, False
    keep_freed_memory()
    with Report(options, device_name(torch.device(options.device))) as report:
        for size in options.sizes.split(","):
            costs = {
                kind: compare(report, size, kind, options) for kind in options.kinds.split(",")
            }
            if costs.get("long") and costs.get("full"):
                report.figures[f"{size}: cost at 8,192"] = costs["long"] / costs["full"]


if __name__ == "__main__":
    main()
