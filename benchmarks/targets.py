"""What is to be reached, as DESIGN section 6 has it, and where it is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A figure of a part's results, and how it is written."""

    name: str
    shown: str = "{:.2f}x"
    unit: float = 1.0
    """What it is divided by."""

    def text(self, figures: dict[str, float]) -> str:
        return self.shown.format(figures[self.name] / self.unit) if self.name in figures else "-"


@dataclass(frozen=True)
class Target:
    """A bound for a figure."""

    what: str
    part: str
    figure: Figure
    bound: float
    at_least: bool
    peers: str = "-"
    """What it stands beside, with a place for each of `peer_figures`."""
    peer_figures: tuple[Figure, ...] = ()

    @property
    def text(self) -> str:
        """The bound, in words."""
        words = self.figure.shown.replace(".3%", ".4g").replace(".1%", ".4g")
        number = 100 * self.bound if "%" in self.figure.shown else self.bound / self.figure.unit
        sign = " %" if "%" in self.figure.shown else ""
        shown = words.replace(":.2f", ":g").replace(":.1f", ":g").replace(":,.0f", ":g")
        return f"at {'least' if self.at_least else 'most'} {shown.format(number)}{sign}"

    def beside(self, figures: dict[str, float]) -> str:
        """What others reached."""
        return self.peers.format(*(figure.text(figures) for figure in self.peer_figures))

    def reached(self, figures: dict[str, float]) -> bool:
        found = figures[self.figure.name]
        return found >= self.bound if self.at_least else found <= self.bound


TOKENS_S = "{:,.0f} tokens/s"
MILLIONS_S = "{:.1f} M tokens/s"


def _steps(size: str, words: str, short: float, full: float, linear: float) -> list[Target]:
    """Return the targets of a training step of one size."""
    part = f"step-{size}"

    def against(kind: str, bound: float, documents: str) -> Target:
        return Target(
            f"training, {documents}, {words}",
            part,
            Figure(f"{size}, {kind}: times padded"),
            bound,
            True,
            "transformers' ModernBertForMaskedLM, sdpa, padded: {} of {}",
            (
                Figure(f"{size}, {kind}, padded: tokens/s", "{:,.0f}"),
                Figure(f"{size}, {kind}, compiled: tokens/s", TOKENS_S),
            ),
        )

    def of_mm(kind: str, documents: str) -> Target:
        return Target(
            f"FLOP/s of a step's linear layers, {documents}, {words}",
            part,
            Figure(f"{size}, {kind}: linear layers, of torch.mm", "{:.1%}"),
            linear,
            True,
            "torch.mm's best: {}",
            (Figure(f"{size}, {kind}: torch.mm, FLOP/s", "{:.0f} GFLOP/s", 1e9),),
        )

    return [
        against("short", short, "documents of about 300 tokens"),
        against("full", full, "documents of 1,024 tokens"),
        of_mm("short", "documents of about 300 tokens"),
        of_mm("full", "documents of 1,024 tokens"),
        Target(
            f"a token of a document of 8,192, {words}",
            part,
            Figure(f"{size}: cost at 8,192"),
            1.25,
            False,
            "one of 1,024, times the ratio of their FLOPs",
        ),
    ]


TARGETS = (
    *_steps("17m", "17 M parameters", 7, 2.5, 0.6),
    *_steps("150m", "150 M parameters", 5, 1.6, 0.75),
    Target(
        "rows of 27 or more mean chunks are full",
        "packing",
        Figure("full, 27 documents a row", "{:.3%}"),
        0.999,
        True,
    ),
    Target(
        "rows of every shipped recipe are full",
        "packing",
        Figure("full, shipped recipes", "{:.3%}"),
        0.99,
        True,
    ),
    Target(
        "packing, one core",
        "packing",
        Figure("tokens/s", MILLIONS_S, 1e6),
        50e6,
        True,
        "{} times what 8 H100s consume at base size",
        (Figure("times a node", "{:.0f}"),),
    ),
    Target(
        "shards to masked, packed batches, one worker",
        "loading",
        Figure("tokens/s, restomod, rows of 16,384", MILLIONS_S, 1e6),
        10e6,
        True,
        "{} times what 8 H100s consume; StreamingDataset, padded: {}; datasets, padded: {}, joined "
        "and cut ahead: {}",
        (
            Figure("times a node", "{:.1f}"),
            *(
                Figure(f"tokens/s, {name}", "{:.2f} M", 1e6)
                for name in (
                    "StreamingDataset, padded",
                    "datasets, padded",
                    "datasets, joined and cut ahead",
                )
            ),
        ),
    ),
    Target(
        "resume at step 1,000,000",
        "resume",
        Figure("late / early"),
        1.1,
        False,
        "at step 10: {}",
        (Figure("early, s", "{:.3f} s"),),
    ),
    Target(
        "start-up, 2 x 10^9 documents: time",
        "start-up",
        Figure("restomod, s", "{:.1f} s"),
        10,
        False,
        "Streaming's own, extrapolated: {}",
        (Figure("Streaming, s", "{:,.0f} s"),),
    ),
    Target(
        "start-up, 2 x 10^9 documents: memory",
        "start-up",
        Figure("restomod, MB", "{:,.0f} MB"),
        500,
        False,
        "Streaming's own, extrapolated: {}",
        (Figure("Streaming, MB", "{:,.0f} GB", 1e3),),
    ),
    Target(
        "optimizer's step, 150 M parameters, compiled as on GPUs",
        "optimizer",
        Figure("compiled / fused"),
        1.6,
        False,
        "torch.optim.AdamW(fused=True): {}",
        (Figure("fused, s", "{:.0f} ms", 1e-3),),
    ),
    Target(
        "optimizer's step, 150 M parameters, eager as on a CPU",
        "optimizer",
        Figure("eager / fused"),
        1.6,
        False,
        "torch.optim.AdamW(fused=True): {}",
        (Figure("fused, s", "{:.0f} ms", 1e-3),),
    ),
)
GPU_SIZES = {"base": "150m", "large": "395m"}
"""Names of the roofline's models, and of their sizes in benchmarks/training."""
