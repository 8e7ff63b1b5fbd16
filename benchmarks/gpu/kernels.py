"""Each kernel at the sizes of base and large: time, share of the roofline, and its peers' times.

The roofline of a kernel that moves memory is what a copy reaches on this device in the same run;
bytes are those of docs/kernels.md. Peers are the plain reference in eager PyTorch, and compiled.
Attention is given as FLOP/s of the pairs of tokens that see each other, for every kernel that is
installed. Called by `python -m benchmarks.gpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

from benchmarks.gpu import traffic
from benchmarks.record import Report, Table, parser_of
from benchmarks.training.measure import device_name
from restomod.kernels.cross_entropy import (
    softmax_cross_entropy_,
    softmax_cross_entropy_reference_,
)
from restomod.kernels.glu import glu, glu_reference
from restomod.kernels.norm import add_norm, add_norm_reference
from restomod.kernels.rope import rope_qk, rope_qk_reference
from restomod.model.attention import BACKENDS, attend, plan_attention
from restomod.model.config import EncoderConfig
from restomod.model.flops import UNLIMITED, pairs
from restomod.model.rope import rope_tables

TOKENS = 98_304
SIZES = {"base": (768, 12, 1152), "large": (1024, 16, 2624)}
"""Hidden size, heads, intermediate size."""
VOCABULARY = 50_368
Call = Callable[[], Any]


def bf16(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


def copy_rate() -> float:
    """Bytes a second that a copy of 1 GiB reads and writes."""
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() / (1e-3 * do_bench(lambda: y.copy_(x)))


def backward_of(outputs: Tensor | tuple[Tensor, ...], inputs: list[Tensor]) -> Call:
    """Return a call that computes the gradients of these outputs."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [torch.randn_like(output) for output in outputs]
    return lambda: torch.autograd.grad(outputs, inputs, grads, retain_graph=True)


def both_ways(
    name: str,
    functions: dict[str, Callable[..., Any]],
    inputs: list[Tensor],
    rest: tuple[Any, ...],
    token_bytes: tuple[float, float],
) -> dict[str, tuple[float, dict[str, Call]]]:
    """Return the calls of ours and its peers, forward and backward, with the bytes they need."""
    outputs = {who: function(*inputs, *rest) for who, function in functions.items()}
    return {
        f"{name}, forward": (
            TOKENS * token_bytes[0],
            {who: lambda f=f: f(*inputs, *rest) for who, f in functions.items()},
        ),
        f"{name}, backward": (
            TOKENS * token_bytes[1],
            {who: backward_of(output, inputs) for who, output in outputs.items()},
        ),
    }


def peers_of(ours: Callable[..., Any], reference: Callable[..., Any]) -> dict[str, Any]:
    return {
        "ours": ours,
        "eager": reference,
        "compiled": torch.compile(reference, dynamic=False, fullgraph=True),
    }


def memory_kernels(size: str) -> dict[str, tuple[float, dict[str, Call]]]:
    """Return for each kernel the bytes that it must move, and calls of ours and of its peers."""
    hidden, heads, inner = SIZES[size]
    qkv = bf16(TOKENS, 3, heads, hidden // heads)
    positions = torch.arange(TOKENS, device="cuda") % 1024
    tables = rope_tables(positions, hidden // heads, 10_000.0, torch.float32)
    kernels: dict[str, tuple[float, dict[str, Call]]] = {
        "RoPE": (
            TOKENS * traffic.rope(hidden, heads),
            {
                who: lambda f=f: f(qkv, *tables)
                for who, f in peers_of(rope_qk, rope_qk_reference).items()
            },
        )
    }
    stream = torch.randn(TOKENS, hidden, device="cuda").requires_grad_()
    branch = bf16(TOKENS, hidden).requires_grad_()
    weight = torch.ones(hidden, device="cuda").requires_grad_()
    kernels |= both_ways(
        "sum and norm",
        peers_of(add_norm, add_norm_reference),
        [stream, branch, weight],
        (None, 1e-5, False),
        traffic.sum_and_norm(hidden),
    )
    kernels |= both_ways(
        "GLU",
        peers_of(glu, glu_reference),
        [bf16(TOKENS, 2 * inner).requires_grad_()],
        ("geglu",),
        traffic.glu(inner),
    )
    rows = 256_000_000 // (2 * VOCABULARY)  # compute.logits_mb's default
    logits, labels = bf16(rows, VOCABULARY), torch.randint(VOCABULARY, (rows,), device="cuda")
    kernels["cross-entropy"] = (
        rows * traffic.cross_entropy(VOCABULARY),
        {
            who: lambda f=f: f(logits, labels, 0.0)
            for who, f in peers_of(softmax_cross_entropy_, softmax_cross_entropy_reference_).items()
            if who != "compiled"  # in place, by pieces
        },
    )
    return kernels


def attention(table: Table, size: str, length: int) -> None:
    """Time every installed kernel on documents of one length, globally and locally."""
    hidden, heads, _ = SIZES[size]
    config = EncoderConfig(hidden_size=hidden, heads=heads)
    lengths = [length] * (TOKENS // length)
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cuda")
    positions = torch.arange(TOKENS, device="cuda") % length
    qkv = bf16(TOKENS, 3, heads, hidden // heads).requires_grad_()
    for name, backend in BACKENDS.items():
        if backend.device != "cuda" or backend.missing():
            continue
        plan = plan_attention(config, positions, bounds, length, torch.bfloat16, name)
        for is_global in (True, False):
            reach = UNLIMITED if is_global else config.local_window // 2
            flops = 4 * hidden * len(lengths) * pairs(length, reach, reach)
            out = attend(qkv, plan, is_global)
            times = [
                do_bench(lambda p=plan, g=is_global: attend(qkv, p, g)),
                do_bench(backward_of(out, [qkv])),
            ]
            rates = [f * flops / (1e9 * t) for f, t in zip((1, 2), times, strict=True)]
            table.row(
                f"{name}, {'global' if is_global else 'local'}, {length:,}",
                *(f"{t:.3f} ms, {r:.0f} TFLOP/s" for t, r in zip(times, rates, strict=True)),
            )


def measure(report: Report, size: str, rate: float) -> None:
    """Time all kernels of one size; `rate` is that of a copy, in bytes a second."""
    table = report.table(
        f"{size}: kernels, {TOKENS:,} tokens; a copy moves {rate / 1e12:.2f} TB/s",
        "kernel",
        "of a copy",
        "ours",
        "eager",
        "compiled",
    )
    for name, (size_bytes, calls) in memory_kernels(size).items():
        times = {who: do_bench(call) for who, call in calls.items()}
        share = size_bytes / (1e-3 * times["ours"]) / rate
        shown = (f"{times[x]:.3f} ms" if x in times else "" for x in ("ours", "eager", "compiled"))
        table.row(name, f"{share:.0%}", *shown)
        report.figures[f"{size}, {name}: of a copy"] = share
    table = report.table(f"{size}: attention with RoPE", "kernel", "forward", "backward")
    for length in (1024, 8192):
        attention(table, size, length)


def main() -> None:
    options = parser_of(__doc__).parse_args()
    with (
        Report(options, device_name(torch.device("cuda"))) as report,
        torch.autocast("cuda", torch.bfloat16),  # decides what the sum and norm writes
    ):
        rate = copy_rate()
        for size in SIZES:
            measure(report, size, rate)


if __name__ == "__main__":
    main()
