"""How long a step takes on this machine's CPU: its matrix products are measured (`restomod.cpu`),
the rest is in proportion.

In: a rank's work in a step. Out: its seconds, which `cost.py` asks for. The constants were fitted
to the steps of `benchmarks/results/plan-cpu-fit.txt` (5 to 150 M parameters, documents of 258 to
8,192 tokens) and hold within 15 % of these; tests/systems compares whole runs.
"""

from __future__ import annotations

from dataclasses import dataclass

LINEAR, ATTENTION = 0.9, 0.65
"""Shares of the measured products' speed that linear layers and attention reach."""
KEPT_BYTE, LOGIT, PARAMETER = 155.0, 850.0, 240.0
"""What all else takes, as the FLOPs of products that take as long: for each byte that a layer keeps
for the backward pass, for each logit, for each parameter in the optimizer."""
LAYER_S, STEP_S = 1.5e-3, 15e-3
"""What a layer takes in a micro-batch, and a step, however small."""


@dataclass(frozen=True)
class Work:
    """A rank's step."""

    linear_flops: float
    attention_flops: float
    kept_bytes: float
    logits: float
    parameters: float
    layers: float
    """Layers of all micro-batches."""


def step_seconds(work: Work, peak_flops: float) -> float:
    """Return the seconds of a rank's step where products run at `peak_flops`."""
    products = work.linear_flops / LINEAR + work.attention_flops / ATTENTION
    others = KEPT_BYTE * work.kept_bytes + LOGIT * work.logits + PARAMETER * work.parameters
    return (products + others) / peak_flops + LAYER_S * work.layers + STEP_S
