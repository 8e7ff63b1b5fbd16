"""From run folders to the raw results, the table and the plots.

In: runs that have ended. Out: runs.csv, table.md and a plot of each comparison. Differences are
paired: an arm's loss less the loss that the comparison's first arm has with the same seed.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ablations.arms import ARMS, COMPARISONS, Comparison
from benchmarks.ablations.runs import Run, last_evaluation, loss

LEVEL = 0.95
Losses = Mapping[str, Mapping[int, float]]
"""Of each arm, by seed."""


@dataclass(frozen=True)
class Difference:
    """Paired differences by seed, their mean, and half the width of its interval at 95 %."""

    by_seed: dict[int, float]
    mean: float
    half: float
    """Infinite for a single seed, NaN without one."""


def difference(arm: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """Return the arm less the reference over the seeds that both have, with Student's t."""
    by_seed = {seed: arm[seed] - reference[seed] for seed in sorted(arm) if seed in reference}
    n = len(by_seed)
    if not n:
        return Difference({}, math.nan, math.nan)
    mean = sum(by_seed.values()) / n
    if n == 1:
        return Difference(by_seed, mean, math.inf)
    from scipy.stats import t

    variance = sum((value - mean) ** 2 for value in by_seed.values()) / (n - 1)
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * math.sqrt(variance / n)
    return Difference(by_seed, mean, half)


def rows(runs: Sequence[Run], folder: Path) -> list[dict[str, Any]]:
    """Return what every run that has ended has come to."""
    found = []
    for run in runs:
        if (evaluation := last_evaluation(folder / run.name)) is None:
            continue
        train, views = evaluation["train"], evaluation.get("views", {})
        joined = any(name.startswith("joined_") for name in evaluation["domains"])
        found.append(
            {
                "run": run.name,
                "arm": "tuning" if run.name.startswith("tune-") else run.arm.name,
                "seed": run.seed,
                "lr": lr_of(folder / run.name),
                "slots": evaluation["tokens"],
                "real_tokens": train["real_tokens"],
                "predicted_tokens": train["masked_tokens"],
                "loss": loss(evaluation),
                **{
                    f"loss_{domain}": evaluation["domains"][domain]["loss"]
                    for domain in ("code", "prose", "science")
                },
                "loss_mask_30": (
                    loss({"domains": views["mask_0.3"]}) if "mask_0.3" in views else math.nan
                ),
                "loss_joined": loss(evaluation, "joined") if joined else math.nan,
                "time_s": evaluation["time_s"],
            }
        )
    return found


def lr_of(folder: Path) -> float:
    """Return a run's learning rate."""
    import yaml

    return float(yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["lr"])


def losses(found: Sequence[Mapping[str, Any]], column: str = "loss") -> dict[str, dict[int, float]]:
    """Return a column of `rows` by arm and seed, without what is not there."""
    out: dict[str, dict[int, float]] = {}
    for row in found:
        if not math.isnan(row[column]):
            out.setdefault(row["arm"], {})[row["seed"]] = row[column]
    return out


def table(of: Losses, comparisons: Sequence[Comparison] = COMPARISONS) -> str:
    """Return the Markdown table of means and paired differences."""
    lines = ["| | arm | seeds | held-out loss | difference, 95 % interval |", "| --- " * 5 + "|"]
    for comparison in comparisons:
        reference, *others = comparison.arms
        title = comparison.title
        for name in (reference, *others):
            values = of.get(name, {})
            shown = f"{sum(values.values()) / len(values):.3f}" if values else "-"
            told = "-" if name == reference else signed(difference(values, of.get(reference, {})))
            lines.append(f"| {title} | {ARMS[name].what} | {len(values)} | {shown} | {told} |")
            title = ""
    return "\n".join(lines) + "\n"


def signed(d: Difference) -> str:
    """Write a difference with its interval."""
    if not d.by_seed:
        return "-"
    if math.isinf(d.half):
        return f"{d.mean:+.3f}, one seed"
    return f"{d.mean:+.3f} ({d.mean - d.half:+.3f} to {d.mean + d.half:+.3f})"


def rates(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the learning rates that were tried."""
    lines = ["| optimizer | learning rate | held-out loss |", "| --- | --- | --- |"]
    for row in found:
        if row["arm"] == "tuning":
            optimizer = row["run"].split("-")[1]
            lines.append(f"| {optimizer} | {row['lr']:g} | {row['loss']:.3f} |")
    return "\n".join(lines) + "\n"


def write_tables(runs: Sequence[Run], folder: Path, out: Path) -> list[dict[str, Any]]:
    """Write runs.csv and table.md of the runs that have ended; return their rows."""
    out.mkdir(parents=True, exist_ok=True)
    found = rows(runs, folder)
    if not found:
        return found
    with (out / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in found
        )
    parts = ["Nats a predicted token, 15 % predicted; less is better.\n", table(losses(found))]
    for column, told in OTHERS.items():
        of = losses(found, column)
        shown = [c for c in (_present(c, of) for c in COMPARISONS) if len(c.arms) > 1]
        parts += [f"{told}\n", table(of, shown)] if shown else []
    parts += ["Learning rates, on a seed of their own:\n", rates(found)]
    (out / "table.md").write_text("\n".join(parts))
    return found


OTHERS = {
    "loss_mask_30": "The same held-out rows with 30 % predicted:",
    "loss_joined": "Held-out documents joined and cut, 15 % predicted:",
}


def _present(comparison: Comparison, of: Losses) -> Comparison:
    """Return the comparison with the arms that have values."""
    arms = tuple(name for name in comparison.arms if name in of)
    return Comparison(comparison.name, comparison.title, arms)


def write(runs: Sequence[Run], folder: Path, out: Path) -> None:
    """Write tables and plots."""
    of = losses(write_tables(runs, folder, out))
    from benchmarks.ablations.plots import draw

    for comparison in COMPARISONS:
        if len(shown := _present(comparison, of).arms) > 1:
            draw(Comparison(comparison.name, comparison.title, shown), of, out)
