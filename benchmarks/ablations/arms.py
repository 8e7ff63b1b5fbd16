"""The arms: what each changes in the base recipe, and which are compared with which.

In: nothing. Out: `ARMS`, `COMPARISONS`, and the words that train.py takes for a run of an arm. What
an arm trains on and from is the base's of the same seed unless the arm says so: initial weights,
order of documents and masks are keyed by the seed (`restomod.data.random`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.ablations.corpus import DOMAINS

BASE = Path(__file__).with_name("base.yaml")
SEEDS = (11, 12, 13, 14, 15)
TUNING_SEED = 1
RATES = {
    "stable_adamw": ("4e-3", "2e-3", "8e-3"),
    "adamw": ("4e-3", "2e-3", "8e-3"),
    "muon": ("4e-3", "2e-3", "8e-3", "16e-3"),
}
"""Learning rates that each optimizer is tried with, on a seed of its own: until the best of them is
neither the lowest nor the highest."""
WARMUP, DECAY = 0.04, 0.4
"""Shares of a run's slots."""
SMALL_SHARE = 0.35
"""Floating-point operations of the small model's token, as a share of the base's
(`restomod.model.flops`)."""


def _streams(section: str, kind: str, split: str) -> tuple[str, ...]:
    return tuple(
        f"{section}.streams.{domain}.path=data/ablations/mds/{domain}/{split}-{kind}"
        for domain in DOMAINS
    )


ALSO_AT_30 = ("evaluation.mask_rates=[0.3]",)
ALSO_JOINED = tuple(
    f"evaluation.streams.joined_{domain}.path=data/ablations/mds/{domain}/heldout-joined"
    for domain in DOMAINS
)


@dataclass(frozen=True)
class Arm:
    """A recipe, as what it changes in the base."""

    name: str
    what: str
    """In a few words, for the table."""
    changes: tuple[str, ...] = ()
    """Words for train.py that change what is trained."""
    measures: tuple[str, ...] = ()
    """Words that only add to what is measured at the end."""
    optimizer: str = "stable_adamw"
    tiled: bool = False
    """Whether it starts from the small model of its seed."""
    slots: float = 1.0
    """Length, as a share of the base's."""
    decay: float = DECAY


@dataclass(frozen=True)
class Comparison:
    """Arms that belong on one plot; the first is what the others are compared with."""

    name: str
    title: str
    arms: tuple[str, ...]


_PHASE = "phases.pretrain"
_MASK, _SCHEDULE = f"{_PHASE}.mask", f"{_PHASE}.schedule"
END = "END"
"""Stands for a run's slots in a change."""
# In the order in which they are trained.
_ALL = (
    Arm("base", "the base", measures=ALSO_AT_30 + ALSO_JOINED),
    Arm("joined", "documents joined", _streams("data", "joined", "train"), ALSO_JOINED),
    Arm("mask_15", "mask 15 %", (f"{_MASK}.rate=0.15",), ALSO_AT_30),
    Arm("mask_40", "mask 40 %", (f"{_MASK}.rate=0.4",), ALSO_AT_30),
    Arm(
        "mask_30_to_15",
        "mask 30 to 15 %, in a straight line",
        (f"{_MASK}.later=[{{at: {END}, rate: 0.15}}]", f"{_MASK}.between=linear"),
        ALSO_AT_30,
    ),
    Arm("adamw", "AdamW", ("optimizer.name=adamw",), optimizer="adamw"),
    Arm("linear", "linear decay", (f"{_SCHEDULE}.decay_shape=linear",)),
    Arm("cosine", "cosine decay", (f"{_SCHEDULE}.decay_shape=cosine",)),
    Arm("tiled", "tiled, as many slots", ("init.log_unigram_bias=false",), tiled=True),
    Arm("muon", "Muon", ("optimizer.name=muon",), optimizer="muon"),
    Arm("all_global", "all three layers global", ("model.global_every=1",)),
    Arm("every_2nd", "layers 0 and 2 global", ("model.global_every=2",)),
    Arm("cut", "documents cut beforehand", _streams("data", "cut", "train"), ALSO_JOINED),
    Arm(
        "cosine_whole",
        "cosine from the warm-up's end",
        (f"{_SCHEDULE}.decay_shape=cosine",),
        decay=1 - WARMUP,
    ),
    Arm(
        "tiled_equal",
        "tiled, with the small model as much computation",
        ("init.log_unigram_bias=false",),
        tiled=True,
        slots=1 - SMALL_SHARE,
    ),
)
ARMS = {arm.name: arm for arm in _ALL}
COMPARISONS = (
    Comparison("packing", "Rows of isolated or of joined documents", ("base", "joined", "cut")),
    Comparison("isolation", "The same, both cut and shuffled beforehand", ("cut", "joined")),
    Comparison(
        "mask-rate", "Share of tokens predicted", ("base", "mask_15", "mask_40", "mask_30_to_15")
    ),
    Comparison(
        "decay", "How the learning rate falls", ("base", "linear", "cosine", "cosine_whole")
    ),
    Comparison("optimizer", "Optimizers at their best rate", ("base", "adamw", "muon")),
    Comparison("attention", "Which layers attend globally", ("base", "all_global", "every_2nd")),
    Comparison(
        "tiling", "Start from a smaller model or from nothing", ("base", "tiled", "tiled_equal")
    ),
)
SMALL = Arm(
    "small",
    "the small model",
    ("model.hidden_size=32", "model.heads=1", "model.intermediate_size=64"),
)


def words(
    arm: Arm,
    seed: int,
    slots: int,
    lr: str,
    folder: Path,
    name: str,
    weights: Path | None = None,
) -> list[str]:
    """Return what train.py takes for a run of an arm in runs folder `folder`, where the base trains
    on so many slots; from `weights` where it does not start from nothing."""
    slots = round(arm.slots * slots)
    return [
        str(BASE),
        f"{_PHASE}.slots={slots}",
        f"{_SCHEDULE}.warmup={round(WARMUP * slots)}",
        f"{_SCHEDULE}.decay={round(arm.decay * slots)}",
        *(change.replace(END, str(slots)) for change in arm.changes),
        *arm.measures,
        *([f"init.weights={weights}"] if weights else []),
        f"optimizer.lr={lr}",
        f"seed={seed}",
        f"runs_dir={folder}",
        f"run_name={name}",
    ]
