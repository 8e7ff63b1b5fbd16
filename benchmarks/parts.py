"""The benchmarks that `make bench` runs, in this order, with what each is given."""

from __future__ import annotations

from dataclasses import dataclass

STEP, ON_GPU = "benchmarks.training.step", ("--device", "cuda", "--sizes", "150m,395m")


@dataclass(frozen=True)
class Part:
    """A benchmark."""

    name: str
    """Of its results: benchmarks/results/NAME.json and NAME.txt."""
    module: str
    arguments: tuple[str, ...] = ()
    threads: int = 0
    """Of each of its processes; 0: as many as there are cores."""
    gpu: bool = False
    """Whether it needs one."""

    @property
    def group(self) -> str:
        """What `--only` may call it, too."""
        return "gpu" if self.gpu else self.module.split(".")[1]


PARTS = (
    Part("packing", "benchmarks.data.packing"),
    Part("loading", "benchmarks.data.loading"),
    Part("start-up", "benchmarks.data.start_up"),
    Part("resume", "benchmarks.data.resume"),
    Part("shuffle", "benchmarks.data.shuffle"),
    Part(
        "step-17m",
        STEP,
        ("--sizes", "17m", "--contenders", "ours,compiled,padded,sparse,sorted"),
    ),
    # Half the documents of a batch and one timed step: a padded one takes a minute or more.
    Part(
        "step-150m",
        STEP,
        (
            *("--sizes", "150m", "--batch", "0.5", "--rounds", "1", "--no-memory"),
            *("--contenders", "compiled,padded,sparse", "--alone", "long"),
        ),
    ),
    Part("optimizer", "benchmarks.training.optimizer"),
    Part("inference", "benchmarks.inference", ("--lengths", "512")),
    Part(
        "inference-8192",
        "benchmarks.inference",
        (
            *("--lengths", "8192", "--kinds", "variable", "--rounds", "2"),
            *("--contenders", "ours,padded,sorted"),
        ),
    ),
    Part("prepare", "benchmarks.prepare"),
    Part("scaling", "benchmarks.scaling.measure", threads=1),
    Part("scaling-simulated", "benchmarks.scaling.simulate"),
    Part("roofline", "benchmarks.gpu.roofline"),
    Part("gpu-kernels", "benchmarks.gpu.kernels", gpu=True),
    # 98,304 tokens of full documents, about 25,000 of short ones: transformers' dense logits fit.
    Part(
        "gpu-step",
        STEP,
        (*ON_GPU, "--batch", "6", "--contenders", "ours,compiled,padded,sparse,sorted"),
        gpu=True,
    ),
    # As many tokens of short documents as a micro-batch of the base recipe has.
    Part(
        "gpu-packed",
        STEP,
        (*ON_GPU, "--batch", "24", "--kinds", "short", "--contenders", "ours,compiled"),
        gpu=True,
    ),
    Part("gpu-optimizer", "benchmarks.training.optimizer", ("--device", "cuda"), gpu=True),
)


def chosen(words: list[str]) -> list[Part]:
    """Return the parts of these names or groups; raises ValueError for a word that is neither."""
    known = {part.name for part in PARTS} | {part.group for part in PARTS}
    unknown = sorted(set(words) - known)
    if unknown:
        raise ValueError(f"no such part: {', '.join(unknown)}; there is {', '.join(sorted(known))}")
    return [part for part in PARTS if {part.name, part.group} & set(words)]
