"""How training scales over H100s, worked out: no number here was measured on them.

    python -m benchmarks.scaling.simulate

Step time, communication and efficiency of ModernBERT's two sizes on 8 to 1,024 GPUs, from the
published speed of one GPU and stated bandwidths (`restomod/tools/plan/scaling.py`). The global
batch is the recipes', whatever the number of GPUs.
"""

from __future__ import annotations

from benchmarks.record import Report, parser_of, say
from restomod.config import ModelConfig
from restomod.model.memory import FLOAT32
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
        "efficiency: the share of the step in which the model is computed",
    ]


def table(report: Report, work: Workload, cluster: Cluster, reduce_bytes: int) -> None:
    """Simulate one model at one speed on all numbers of GPUs."""
    rows = report.table(
        f"{work.name}: {work.parameters / 1e6:.0f} M parameters, "
        f"{work.tokens_per_step / 1e6:.2f} M tokens a step, "
        f"micro-batches of at most {work.micro_batch_tokens:,}, "
        f"{work.tokens_per_s / 1e3:.0f} k tokens/s and GPU",
        "GPUs, strategy",
        "micro-batches",
        "step, ms",
        "compute, ms",
        "exposed, ms",
        "optimizer, ms",
        "a rank sends, MB",
        "efficiency",
        "M tokens/s",
    )
    for gpus in GPUS:
        for strategy in STRATEGIES:
            step = simulate(strategy, work, gpus, cluster, reduce_bytes)
            rows.row(
                f"{gpus:,}, {strategy}",
                f"{step.micro_batches}",
                f"{step.seconds * 1e3:.1f}",
                f"{step.compute_s * 1e3:.1f}",
                f"{step.exposed_s * 1e3:.2f}",
                f"{step.optimizer_s * 1e3:.2f}",
                f"{step.sent_bytes / 1e6:.0f}",
                f"{step.efficiency:.1%}",
                f"{work.tokens_per_step / step.seconds / 1e6:.1f}",
            )
            report.figures[f"{work.name}, {gpus} GPUs, {strategy}: efficiency"] = step.efficiency


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--reduce-dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    reduce_bytes = FLOAT32 if options.reduce_dtype == "float32" else 2
    cluster = Cluster()
    with Report(options) as report:
        say("\n" + "\n".join(assumptions(cluster, reduce_bytes)))
        for name, (model, tokens, micro_batch_tokens, speed) in PUBLISHED.items():
            for factor, label in ((1.0, "published speed"), (AIM, f"{AIM:g} x that, our aim")):
                case, reached = f"{name}, {label}", factor * speed
                work = workload(case, model, VOCABULARY, tokens, micro_batch_tokens, reached)
                table(report, work, cluster, reduce_bytes)


if __name__ == "__main__":
    main()
