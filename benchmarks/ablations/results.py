"""From run folders to the raw results, the tables and the plots.

In: runs that have ended. Out: runs.csv and tables.md; a plot of each comparison, and the tables
once more, in docs/. Differences are paired: an arm's loss less the loss that the comparison's first
arm has with the same seed.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.ablations.arms import ARMS, COMPARISONS, Comparison
from benchmarks.ablations.corpus import DOMAINS
from benchmarks.ablations.runs import Run, last_evaluation, loss

LEVEL = 0.95
CSV, TABLES = "runs.csv", "tables.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
"""Around what is written into the page."""
Row = Mapping[str, Any]
Losses = Mapping[str, Mapping[int, float]]
"""Of each arm, by seed."""
OTHERS = {
    "loss_mask_30": "The same held-out rows with 30 % predicted:",
    "loss_joined": "Held-out documents joined and cut as the arm `joined` is trained, 15 %:",
}


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


def measured(runs: Sequence[Run], folder: Path) -> list[Row]:
    """Return a row for every run that has ended; losses are rounded to what runs.csv holds."""
    rows = []
    for run in runs:
        if (evaluation := last_evaluation(folder / run.name)) is None:
            continue
        start, train = evaluation["start"], evaluation["train"]
        domains, at_30 = evaluation["domains"], evaluation.get("views", {}).get("mask_0.3")
        is_joined = any(name.startswith("joined_") for name in domains)
        values = {
            "loss": loss(domains),
            **{f"loss_{domain}": domains[domain]["loss"] for domain in DOMAINS},
            "loss_mask_30": loss(at_30) if at_30 else math.nan,
            "loss_joined": loss(domains, "joined") if is_joined else math.nan,
        }
        rows.append(
            {
                "run": run.name,
                "arm": "tuning" if run.name.startswith("tune-") else run.arm.name,
                "seed": run.seed,
                "lr": f"{learning_rate(folder / run.name):g}",
                "parameters": start["model"]["parameters"],
                "slots": evaluation["tokens"],
                "real_tokens": train["real_tokens"],
                "predicted_tokens": train["masked_tokens"],
                **{name: round(value, 4) for name, value in values.items()},
                "commit": start["git"].get("commit", "")[:7],
            }
        )
    return rows


def learning_rate(folder: Path) -> float:
    """Return a run's peak learning rate."""
    return float(yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["lr"])


def losses(rows: Sequence[Row], column: str = "loss") -> dict[str, dict[int, float]]:
    """Return a column by arm and seed, without what is not there."""
    of: dict[str, dict[int, float]] = {}
    for row in rows:
        if not math.isnan(row[column]):
            of.setdefault(row["arm"], {})[row["seed"]] = row[column]
    return of


def compared(of: Losses) -> list[Comparison]:
    """Return the comparisons as far as there are arms for them."""
    found = []
    for comparison in COMPARISONS:
        arms = tuple(name for name in comparison.arms if name in of)
        if arms[:1] == comparison.arms[:1] and len(arms) > 1:
            found.append(Comparison(comparison.name, comparison.title, arms))
    return found


def table(of: Losses) -> str:
    """Return the Markdown table of means and paired differences."""
    lines = ["| | arm | seeds | held-out loss | difference, 95 % interval |", "| --- " * 5 + "|"]
    for comparison in compared(of):
        reference, *_ = comparison.arms
        title = comparison.title
        for name in comparison.arms:
            values, what = of[name], ARMS[name].what
            mean = sum(values.values()) / len(values)
            told = "" if name == reference else signed(difference(values, of[reference]))
            lines.append(f"| {title} | {what} | {len(values)} | {mean:.3f} | {told} |")
            title = ""
    return "\n".join(lines) + "\n"


def signed(d: Difference) -> str:
    """Write a difference with its interval, in bold where that leaves out zero."""
    if not d.by_seed:
        return "no seed in common"
    if math.isinf(d.half):
        return f"{d.mean:+.3f}, one seed"
    text = f"{d.mean:+.3f} ({d.mean - d.half:+.3f} to {d.mean + d.half:+.3f})"
    return f"**{text}**" if abs(d.mean) > d.half else text


def rates(rows: Sequence[Row]) -> str:
    """Return the table of the learning rates that were tried."""
    lines = ["| optimizer | learning rate | held-out loss |", "| --- | --- | --- |"]
    for row in rows:
        if row["arm"] == "tuning":
            optimizer = row["run"].split("-")[1]
            lines.append(f"| {optimizer} | {row['lr']} | {row['loss']:.3f} |")
    return "\n".join(lines) + "\n"


def tables(rows: Sequence[Row]) -> str:
    """Return all tables, with what they are of."""
    of = losses(rows)
    base = next((row for row in rows if row["arm"] == "base"), None)
    if base is None:
        return "No run of the base has ended.\n"
    parts = [
        f"{len(rows)} runs; the base: {base['parameters']:,} parameters, {base['slots']:,} slots, "
        f"{base['predicted_tokens']:,} of their tokens predicted. Nats a predicted token, less is "
        "better; bold: the interval leaves out zero.\n",
        table(of),
    ]
    for column, told in OTHERS.items():
        also = losses(rows, column)
        parts += [f"{told}\n", table(also)] if compared(also) else []
    parts += ["Learning rates that were tried, on a seed of their own:\n", rates(rows)]
    return "\n".join(parts)


def write_tables(runs: Sequence[Run], folder: Path, out: Path) -> list[Row]:
    """Write runs.csv and tables.md of the runs that have ended; return their rows."""
    out.mkdir(parents=True, exist_ok=True)
    rows = measured(runs, folder)
    if rows:
        with (out / CSV).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        (out / TABLES).write_text(tables(rows))
    return rows


def read(path: Path) -> list[Row]:
    """Return the rows of a runs.csv."""
    texts = ("run", "arm", "lr", "commit")
    with path.open(newline="") as file:
        return [
            {
                key: value
                if key in texts
                else (float(value) if key.startswith("loss") else int(value))
                for key, value in row.items()
            }
            for row in csv.DictReader(file)
        ]


def write(runs: Sequence[Run], folder: Path, out: Path, page: Path) -> None:
    """Write tables and plots, and both into the page: plots lie in a folder of its name."""
    rows = write_tables(runs, folder, out)
    of = losses(rows)
    plots = page.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    from benchmarks.ablations.plots import draw

    shown = compared(of)
    for comparison in shown:
        draw(comparison, of, plots)
    images = [f"![{c.title}]({plots.name}/{c.name}.svg)\n" for c in shown]
    text = "\n".join([BEGIN, "", tables(rows), *images, END])
    old = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: text, old, flags=re.DOTALL))
