"""A step of the optimizer on a model's parameters, beside torch's fused AdamW.

    python -m benchmarks.training.optimizer

StableAdamW as recipes have it on a CPU, eager, and on GPUs, compiled. Steps take turns; medians. On
a CPU memory reuse (`keep_freed_memory`) is on, as in training.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.record import Report, parser_of
from benchmarks.training.documents import SIZES, encoder_config
from benchmarks.training.measure import device_name, settle
from restomod.model.cpu import keep_freed_memory
from restomod.model.encoder import MaskedLM
from restomod.optim.stable_adamw import StableAdamW, parameter_groups

NAMES = {
    "fused": "torch.optim.AdamW(fused=True)",
    "foreach": "torch.optim.AdamW(foreach=True)",
    "eager": "StableAdamW",
    "compiled": "StableAdamW, compiled",
}
WARM = 2


def compare(report: Report, size: str, rounds: int, compiles: bool, device: torch.device) -> None:
    """Time the optimizers on the parameters of one size."""
    model = MaskedLM(encoder_config(size)).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    groups = parameter_groups(model, 1e-5)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "fused": torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True),
        "foreach": torch.optim.AdamW(model.parameters(), lr=1e-6, foreach=True),
        "eager": StableAdamW(groups, lr=1e-6, lr_max=1e-3),
    }
    if compiles:
        again = parameter_groups(model, 1e-5)
        optimizers["compiled"] = StableAdamW(again, lr=1e-6, lr_max=1e-3, compiled=True)
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for n in range(rounds + WARM):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            settle(device)
            if n >= WARM:
                seconds[name].append(time.perf_counter() - start)
    parameters = sum(p.numel() for p in model.parameters())
    table = report.table(
        f"a step on {parameters / 1e6:.1f} M parameters, medians of {rounds}",
        "optimizer",
        "ms",
        "this / fused AdamW",
    )
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    for name, taken in middle.items():
        table.row(NAMES[name], f"{1e3 * taken:.1f}", f"{taken / middle['fused']:.2f}x")
        report.figures[f"{name}, s"] = taken
        report.figures[f"{name} / fused"] = taken / middle["fused"]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--size", default="150m", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    if options.quick:
        options.size, options.rounds = "tiny", 3
    device = torch.device(options.device)
    keep_freed_memory()
    with Report(options, device_name(device)) as report:
        compare(report, options.size, options.rounds, not options.quick, device)


if __name__ == "__main__":
    main()
