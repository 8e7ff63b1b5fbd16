"""How training scales over ranks: worked out for H100s, and measured on CPUs.

    python benchmarks/scaling.py simulate
    OMP_NUM_THREADS=1 python benchmarks/scaling.py measure --ranks 1,2,4

`simulate` prints step time, communication and efficiency of ModernBERT's two sizes on 8 to 1,024
GPUs, from measured speed of one GPU and stated bandwidths (`restomod/tools/plan/scaling.py`): what
to expect, not what was seen. The global batch is the recipes', whatever the number of GPUs.

`measure` trains a recipe (`make demo` provides the default's data) with gloo ranks on this machine,
through train.py's own path, and prints the step time and the bytes of each rank's sockets that
others have acknowledged: all that it sent, whoever asked for it. Beside them stands what the
strategy sends by the formulas of `simulate`. Ranks that share cores say little about speed, but
send what they would anywhere.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import socket
import struct
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from restomod.config import ModelConfig, Recipe
from restomod.model.memory import FLOAT32, parameters
from restomod.tools.plan.scaling import (
    BACKWARD,
    BUCKET_BYTES,
    OPTIMIZER_BYTES,
    Cluster,
    Workload,
    simulate,
    workload,
)

STRATEGIES = ("ddp", "fsdp", "hsdp")
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
VOCABULARY = 50_368
BASE = ModelConfig()
LARGE = ModelConfig(layers=28, hidden_size=1024, heads=16, intermediate_size=2624)
PUBLISHED = {
    "base": (BASE, 4_608 * 1024, 96 * 1024, 312e3),
    "large": (LARGE, 4_928 * 1024, 56 * 1024, 142e3),
}
"""Shape, tokens of a step and of a micro-batch, tokens/s of a GPU: ModernBERT's own runs on 8 H100s
at 1,024 context (arXiv 2412.13663, table 3 and its training recipes; speed from the hours of
training)."""
AIM = 1.5
"""Our aim for a GPU's speed, as a multiple of the published one."""
WARM_STEPS, TIMED_STEPS = 5, 20
TCP_INFO_BYTES_ACKED = 120
"""Offset in Linux's struct tcp_info."""


def assumptions(cluster: Cluster, reduce_bytes: int) -> list[str]:
    """State all that the simulation takes for granted."""
    return [
        "Nothing here was measured on these numbers of GPUs. Assumed:",
        f"- nodes of {cluster.gpus_per_node} H100s; NVLink {cluster.node_link / 1e9:g} GB/s and "
        f"InfiniBand {cluster.network_link * 8 / 1e9:g} Gb/s per GPU and direction, of which "
        f"{cluster.reached:.0%} is reached",
        f"- {cluster.node_hop_s * 1e6:g} us for a hop in a node, "
        f"{cluster.network_hop_s * 1e6:g} us for one between nodes, "
        f"{cluster.launch_s * 1e6:g} us for each collective",
        "- rings over all GPUs, through all adapters of a node at once; all-reduce by a tree "
        "where that is faster; no congestion between nodes",
        "- a GPU computes small micro-batches (4,608 tokens at 1,024 GPUs) at the same tokens/s as "
        "large ones; communication takes nothing from compute",
        f"- the backward pass is {BACKWARD:.0%} of compute; gradients are reduced in "
        f"{reduce_bytes} bytes each",
        f"- ddp: buckets of {BUCKET_BYTES / 2**20:g} MiB in the last backward pass of a step; the "
        "embedding's gradient, complete at its end, is not hidden",
        "- fsdp, hsdp: each layer gathered in bf16 before its forward and its backward pass, "
        "during the layer ahead of it; embedding and head gathered in float32 before the forward "
        "pass, kept until the backward pass, not hidden; gradients reduce-scattered after every "
        "micro-batch, during the next layer's backward pass",
        "- hsdp: a copy in each node; gradients all-reduced between nodes in the last micro-batch",
        f"- the optimizer reads and writes {OPTIMIZER_BYTES} bytes a parameter that a rank holds, "
        f"at {cluster.memory_bytes_per_s / 1e12:.2f} TB/s",
        "- the loader, evaluation and checkpoints take no time",
        "efficiency: the share of the step in which the model is computed. 90 % to: the most GPUs "
        "of those shown with at least 90 %",
    ]


def table(work: Workload, cluster: Cluster, reduce_bytes: int) -> list[str]:
    """Return the simulation's lines for one model at one speed."""
    lines = [
        f"{work.name}: {work.parameters / 1e6:.0f} M parameters, "
        f"{work.tokens_per_step / 1e6:.2f} M tokens a step, "
        f"micro-batches of at most {work.micro_batch_tokens:,}, "
        f"{work.tokens_per_s / 1e3:.0f} k tokens/s and GPU",
        "   GPUs strategy  micro-     step  compute  exposed  optimizer    sent by   effi-"
        "           M",
        "                 batches       ms       ms       ms         ms   rank, MB  ciency"
        "    tokens/s",
    ]
    good = dict.fromkeys(STRATEGIES, 0)
    for gpus in GPUS:
        for strategy in STRATEGIES:
            step = simulate(strategy, work, gpus, cluster, reduce_bytes)
            if step.efficiency >= 0.9:
                good[strategy] = gpus
            lines.append(
                f"  {gpus:5d} {strategy:<8} {step.micro_batches:7d} {step.seconds * 1e3:8.1f} "
                f"{step.compute_s * 1e3:8.1f} {step.exposed_s * 1e3:8.2f} "
                f"{step.optimizer_s * 1e3:10.2f} {step.sent_bytes / 1e6:10.0f} "
                f"{step.efficiency:7.1%} {work.tokens_per_step / step.seconds / 1e6:11.1f}"
            )
    most = ", ".join(f"{strategy} {gpus}" for strategy, gpus in good.items())
    return [*lines, f"  90 % to: {most} GPUs"]


def simulated(reduce_bytes: int) -> list[str]:
    """Return the report of `simulate`."""
    cluster = Cluster()
    lines = assumptions(cluster, reduce_bytes)
    for name, (model, tokens, micro_batch_tokens, speed) in PUBLISHED.items():
        for factor, label in ((1.0, "published speed"), (AIM, f"{AIM:g} x that, our aim")):
            work = workload(
                f"{name}, {label}", model, VOCABULARY, tokens, micro_batch_tokens, factor * speed
            )
            lines += ["", *table(work, cluster, reduce_bytes)]
    return lines


def acknowledged_bytes() -> int:
    """Return the bytes that others have acknowledged on this process's TCP sockets so far."""
    total = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as own:
                if own.family in (socket.AF_INET, socket.AF_INET6) and own.type == (
                    socket.SOCK_STREAM
                ):
                    info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("Q", info, TCP_INFO_BYTES_ACKED)[0]
        except OSError:  # closed meanwhile, or the listing's own
            continue
    return total


def run_rank(environment: dict[str, str], arguments: list[str], log: str, out: str) -> None:
    """Train as train.py does, with a callback that notes time and traffic of the timed steps."""
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from composer import Callback, State, Trainer

    from restomod.cli import train_main
    from restomod.train import builder

    class Traffic(Callback):
        def batch_end(self, state: State, logger: Any) -> None:
            step = state.timestamp.batch.value
            if step == WARM_STEPS:
                self._before = time.perf_counter(), acknowledged_bytes()
            elif step == WARM_STEPS + TIMED_STEPS:
                seconds = time.perf_counter() - self._before[0]
                sent = acknowledged_bytes() - self._before[1]
                Path(out).write_text(
                    json.dumps({"seconds": seconds / TIMED_STEPS, "sent": sent / TIMED_STEPS})
                )

    def trainer(**settings: Any) -> Trainer:
        settings["callbacks"] = [*settings["callbacks"], Traffic()]
        return Trainer(**settings)

    builder.Trainer = trainer
    sys.exit(train_main(arguments))


def train(arguments: list[str], ranks: int, folder: Path) -> list[dict[str, float]]:
    """Train on `ranks` processes; return what each has noted. Raises RuntimeError if one fails."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["restomod.train.builder"])
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank in range(ranks):
        environment: dict[str, str] = {}
        if ranks > 1:
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "NODE_RANK": "0",
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
            }
        out, log = folder / f"{rank}.json", folder / f"{rank}.log"
        processes.append(
            context.Process(target=run_rank, args=(environment, arguments, str(log), str(out)))
        )
        processes[-1].start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError((folder / "0.log").read_text())
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def measured(recipe_words: list[str], counts: list[int], strategies: list[str]) -> list[str]:
    """Return the report of `measure`."""
    from restomod.data.tokenizer import load_tokenizer
    from restomod.recipe import load_recipe

    files = [word for word in recipe_words if "=" not in word]
    overrides = [word for word in recipe_words if "=" in word]
    recipe = load_recipe(files, overrides)
    phase = recipe.phases[0]
    steps = WARM_STEPS + TIMED_STEPS
    vocabulary = load_tokenizer(recipe.tokenizer).vocab_size
    heading = [
        f"{sum(parameters(recipe.model, vocabulary)) / 1e6:.2f} M parameters, batches of "
        f"{phase.batch_rows} rows of {phase.row_tokens:,}, micro-batches of "
        f"{phase.micro_batch_rows}; {TIMED_STEPS} steps after {WARM_STEPS}",
        "  strategy  ranks  micro-batches  ms a step  tokens/s   sent by a rank    by the model",
        "                                                         and step, MB    of strategy",
    ]
    lines = []
    for strategy in strategies:
        for ranks in counts:
            shard_ranks = 2 if strategy == "hsdp" and ranks > 2 else ranks
            with tempfile.TemporaryDirectory() as folder:
                words = [
                    *recipe_words,
                    f"runs_dir={folder}",
                    f"phases.0.slots={steps * phase.batch_slots}",
                    "phases.0.schedule.warmup=0",
                    "phases.0.schedule.decay=0",
                    "evaluation.streams={}",
                    f"checkpoint.every_steps={10 * steps}",
                    f"logging.every_steps={10 * steps}",
                    "logging.wandb.mode=disabled",
                    f"parallel.strategy={strategy}",
                ]
                if strategy == "hsdp" and ranks > 1:
                    words.append(f"parallel.shard_ranks={shard_ranks}")
                noted = train(words, ranks, Path(folder))
            lines.append(_measured_line(recipe, vocabulary, strategy, ranks, shard_ranks, noted))
    return [*heading, *lines]


def _measured_line(
    recipe: Recipe,
    vocabulary: int,
    strategy: str,
    ranks: int,
    shard_ranks: int,
    noted: list[dict[str, float]],
) -> str:
    phase = recipe.phases[0]
    work = workload(
        "measured",
        recipe.model,
        vocabulary,
        phase.batch_slots,
        phase.micro_batch_rows * phase.row_tokens,
        1.0,
    )
    # On a CPU layers are gathered in float32. A copy's ranks stand for a node.
    cluster = Cluster(gpus_per_node=shard_ranks)
    expected = simulate(strategy, work, ranks, cluster, gather_bytes=FLOAT32)
    seconds = max(rank["seconds"] for rank in noted)
    sent = sum(rank["sent"] for rank in noted) / ranks
    return (
        f"  {strategy:<8} {ranks:6d} {expected.micro_batches:14d} {seconds * 1e3:10.1f} "
        f"{phase.batch_slots / seconds:9.0f} {sent / 1e6:16.2f} {expected.sent_bytes / 1e6:15.2f}"
    )


def machine() -> list[str]:
    """Describe what this runs on, without names or paths."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return [f"commit {commit or 'unknown'}; {date.today()}", f"{cpu}; {os.cpu_count()} cores"]


def main() -> None:
    """Print one of the two reports; with --out, write it to a file too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parts = parser.add_subparsers(dest="part", required=True)
    first = parts.add_parser("simulate")
    first.add_argument("--reduce-dtype", default="float32", choices=("float32", "bfloat16"))
    second = parts.add_parser("measure")
    second.add_argument("recipe", nargs="*", default=["yamls/recipes/demo.yaml"])
    second.add_argument("--ranks", default="1,2,4")
    second.add_argument("--strategies", default=",".join(STRATEGIES), help="of %(default)s")
    for part in (first, second):
        part.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS")
    command = f"python benchmarks/scaling.py {' '.join(sys.argv[1:])}"
    lines = [f"OMP_NUM_THREADS={threads} {command}" if threads else command, *machine(), ""]
    if arguments.part == "simulate":
        lines += simulated(FLOAT32 if arguments.reduce_dtype == "float32" else 2)
    else:
        counts = [int(count) for count in arguments.ranks.split(",")]
        lines += measured(arguments.recipe, counts, arguments.strategies.split(","))
    print("\n".join(lines), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
