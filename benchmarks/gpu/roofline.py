"""What an H100 could do at most, by its data sheet: an estimate, nothing ran.

    python -m benchmarks.gpu.roofline

A token's time is that of its matrix products at the GPU's bf16 peak, and of the bytes that the
kernels between them must move at its memory's bandwidth (docs/kernels.md), one after the other;
documents of 1,024 tokens, 30 % predicted. Products read and write their operands meanwhile. The
optimizer's share of a step is 28 bytes a parameter. The last column assumes that 65 % of the peak
and 80 % of the bandwidth are reached.
"""

from __future__ import annotations

from benchmarks.gpu import traffic
from benchmarks.record import Report, parser_of
from benchmarks.scaling.simulate import AIM, PUBLISHED, VOCABULARY
from restomod.config import ModelConfig
from restomod.gpus import gpu_named
from restomod.model.flops import attention_flops_per_token, linear_flops_per_token
from restomod.model.memory import parameters
from restomod.tools.plan.scaling import OPTIMIZER_BYTES, REACHED_BANDWIDTH

CONTEXT, PREDICTED = 1024, 0.3
REACHED_PEAK = 0.65


def bytes_per_token(model: ModelConfig) -> float:
    """Return what the kernels of a training step move, forward and backward."""
    norms = 2 * sum(traffic.sum_and_norm(model.hidden_size))
    block = 2 * traffic.rope(model.hidden_size, model.heads) + norms
    block += sum(traffic.glu(model.intermediate_size))
    return model.layers * block + PREDICTED * traffic.cross_entropy(VOCABULARY)


def main() -> None:
    options = parser_of(__doc__).parse_args()
    gpu = gpu_named("h100")
    with Report(options) as report:
        table = report.table(
            f"one H100, {gpu.flops / 1e12:.0f} TFLOP/s, {gpu.bandwidth / 1e12:.2f} TB/s; "
            "k tokens/s",
            "model",
            "MFLOPs a token",
            "kB a token",
            "published",
            "aim",
            "at the roofline",
            f"at {REACHED_PEAK:.0%} and {REACHED_BANDWIDTH:.0%}",
        )
        for name, (model, tokens, _, published) in PUBLISHED.items():
            flops = linear_flops_per_token(model, VOCABULARY, PREDICTED)
            flops += attention_flops_per_token(model, [CONTEXT], False)
            moved = bytes_per_token(model)
            step = OPTIMIZER_BYTES * sum(parameters(model, VOCABULARY)) / (tokens / 8)
            memory_s = (moved + step) / gpu.bandwidth
            roof = 1 / (flops / gpu.flops + memory_s)
            reached = 1 / (flops / gpu.flops / REACHED_PEAK + memory_s / REACHED_BANDWIDTH)
            table.row(
                name,
                f"{flops / 1e6:,.0f}",
                f"{moved / 1e3:,.0f}",
                f"{published / 1e3:.0f}",
                f"{AIM * published / 1e3:.0f}",
                f"{roof / 1e3:.0f}",
                f"{reached / 1e3:.0f}",
            )
            report.figures |= {
                f"{name}: published, tokens/s": published,
                f"{name}: aim, tokens/s": AIM * published,
                f"{name}: roofline, tokens/s": roof,
                f"{name}: estimate, tokens/s": reached,
            }


if __name__ == "__main__":
    main()
