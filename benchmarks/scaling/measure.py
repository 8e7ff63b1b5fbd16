"""What ranks send and how fast they are, on CPUs, beside what `simulate` says they send.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling.measure --ranks 1,2,4

Trains a recipe (without one: the demo's on made documents) with gloo ranks on this machine, through
train.py's own path, and gives the step time and the bytes of each rank's sockets that others have
acknowledged: all that it sent, whoever asked for it. Ranks that share cores say little about speed,
but send what they would anywhere.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.data.documents import STREAMS, tokenizer_folder, write_streams
from benchmarks.record import ROOT, Report, parser_of
from benchmarks.scaling.simulate import STRATEGIES
from restomod.config import Recipe
from restomod.model.memory import FLOAT32, parameters
from restomod.tools.plan.scaling import Cluster, Step, simulate, workload

WARM_STEPS = 3
TCP_INFO_BYTES_ACKED = 120
"""Offset in Linux's struct tcp_info."""
DEMO = ROOT / "yamls" / "recipes" / "demo.yaml"


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


def run_rank(
    environment: dict[str, str], arguments: list[str], steps: int, log: str, out: str
) -> None:
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
            elif step == WARM_STEPS + steps:
                seconds = time.perf_counter() - self._before[0]
                sent = acknowledged_bytes() - self._before[1]
                Path(out).write_text(json.dumps({"seconds": seconds / steps, "sent": sent / steps}))

    def trainer(**settings: Any) -> Trainer:
        settings["callbacks"] = [*settings["callbacks"], Traffic()]
        return Trainer(**settings)

    builder.Trainer = trainer
    sys.exit(train_main(arguments))


def train(arguments: list[str], ranks: int, folder: Path, steps: int) -> list[dict[str, float]]:
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
            context.Process(
                target=run_rank, args=(environment, arguments, steps, str(log), str(out))
            )
        )
        processes[-1].start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError((folder / "0.log").read_text())
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def demo_on_made_documents(folder: Path) -> list[str]:
    """Return the demo's recipe and the overrides by which it reads documents made here."""
    root = write_streams(folder, 6000, "raw")
    paths = [
        f"{part}.streams.{name}.path={root / made}"
        for part in ("data", "evaluation")
        for name, made in zip(("code", "prose", "science"), STREAMS, strict=True)
    ]
    return [str(DEMO), f"tokenizer={tokenizer_folder(folder)}", "phases.0.batch_rows=8", *paths]


def compare(
    report: Report, recipe_words: list[str], counts: list[int], strategies: list[str], steps: int
) -> None:
    """Train with every strategy on every number of ranks."""
    from restomod.data.tokenizer import load_tokenizer
    from restomod.recipe import load_recipe

    files = [word for word in recipe_words if "=" not in word]
    recipe = load_recipe(files, [word for word in recipe_words if "=" in word])
    phase = recipe.phases[0]
    slots = (WARM_STEPS + steps) * phase.batch_slots
    vocabulary = load_tokenizer(recipe.tokenizer).vocab_size
    table = report.table(
        f"{sum(parameters(recipe.model, vocabulary)) / 1e6:.2f} M parameters, batches of "
        f"{phase.batch_rows} rows of {phase.row_tokens:,}, micro-batches of "
        f"{phase.micro_batch_rows}; {steps} steps after {WARM_STEPS}",
        "strategy, ranks",
        "micro-batches",
        "ms a step",
        "tokens/s",
        "a rank sends a step, MB",
        "by simulate, MB",
    )
    for strategy in strategies:
        for ranks in counts:
            shard_ranks = 2 if strategy == "hsdp" and ranks > 2 else ranks
            with tempfile.TemporaryDirectory() as folder:
                words = [
                    *recipe_words,
                    f"runs_dir={folder}",
                    f"cache_dir={folder}/cache",
                    f"phases.0.slots={slots}",
                    "phases.0.schedule.warmup=0",
                    "phases.0.schedule.decay=0",
                    f"evaluation.every_steps={slots}",
                    "evaluation.rows=1",
                    "evaluation.samples=0",
                    f"checkpoint.every_steps={slots}",
                    f"logging.every_steps={slots}",
                    "logging.wandb.mode=disabled",
                    f"parallel.strategy={strategy}",
                ]
                if strategy == "hsdp" and ranks > 1:
                    words.append(f"parallel.shard_ranks={shard_ranks}")
                noted = train(words, ranks, Path(folder), steps)
            seconds = max(rank["seconds"] for rank in noted)
            sent = sum(rank["sent"] for rank in noted) / ranks
            expected = expected_step(recipe, vocabulary, strategy, ranks, shard_ranks)
            table.row(
                f"{strategy}, {ranks}",
                f"{expected.micro_batches}",
                f"{seconds * 1e3:.1f}",
                f"{phase.batch_slots / seconds:,.0f}",
                f"{sent / 1e6:.2f}",
                f"{expected.sent_bytes / 1e6:.2f}",
            )
            case = f"{strategy}, {ranks} ranks"
            report.figures[f"{case}: tokens/s"] = phase.batch_slots / seconds
            report.figures[f"{case}: sent, bytes"] = sent
            report.figures[f"{case}: sent, by simulate"] = expected.sent_bytes


def expected_step(
    recipe: Recipe, vocabulary: int, strategy: str, ranks: int, shard_ranks: int
) -> Step:
    """Return what `simulate` makes of a step here."""
    phase = recipe.phases[0]
    micro_batch = phase.micro_batch_rows * phase.row_tokens
    work = workload("measured", recipe.model, vocabulary, phase.batch_slots, micro_batch, 1.0)
    # On a CPU layers are gathered in float32. A copy's ranks stand for a node.
    cluster = Cluster(gpus_per_node=shard_ranks)
    return simulate(strategy, work, ranks, cluster, gather_bytes=FLOAT32)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("recipe", nargs="*", help="files and KEY=VALUE")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="of %(default)s")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    if options.quick:
        options.ranks, options.strategies, options.steps = "2", "ddp", 2
    counts = [int(count) for count in options.ranks.split(",")]
    with tempfile.TemporaryDirectory() as folder, Report(options) as report:
        words = options.recipe or demo_on_made_documents(Path(folder))
        compare(report, words, counts, options.strategies.split(","), options.steps)


if __name__ == "__main__":
    main()
