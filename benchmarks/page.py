"""Writes what results say into the pages that show it: performance.md and scale.md, and README.

    python -m benchmarks.page           # `make bench` does it at its end

In: benchmarks/results/*.json. A page has a place for each table, between `<!-- begin NAME -->` and
`<!-- end -->`; what stands around it is written by hand, and holds no measured number.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import trillions
from benchmarks.parts import PARTS
from benchmarks.record import ROOT, say
from benchmarks.targets import GPU_SIZES, TARGETS, Figure, Target

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
SCALE = ROOT / "docs" / "scale.md"
README = ROOT / "README.md"
PAGES = (PAGE, SCALE, README)
BUSY_CORES = 0.25
"""Cores that other programs kept busy from which on a result says so."""
Results = dict[str, dict[str, Any]]


def load(folder: Path = RESULTS) -> Results:
    """Return the results of every part that has any."""
    files = {part.name: folder / f"{part.name}.json" for part in PARTS}
    return {name: json.loads(f.read_text()) for name, f in files.items() if f.is_file()}


def rendered(text: str, results: Results) -> str:
    """Return a page with its tables made anew."""

    def place(match: re.Match[str]) -> str:
        made = section(match[1], results)
        return f"<!-- begin {match[1]} -->\n\n{made}\n\n<!-- end -->" if made else match[0]

    return re.sub(r"<!-- begin ([\w -]+) -->\n.*?<!-- end -->", place, text, flags=re.DOTALL)


def section(name: str, results: Results) -> str:
    """Return what belongs in the place of that name; nothing where what it follows from failed."""
    if name in ("targets", "targets in short"):
        return targets(results) if name == "targets" else targets(results, columns=5)
    if name == "gpu":
        return on_gpus(results)
    if name.startswith("scale "):
        try:
            return trillions.tables(results)[name.removeprefix("scale ")]
        except KeyError:
            return ""
    return part(name, results)


def targets(results: Results, columns: int = 8) -> str:
    """Return the table of all targets, or its first columns: the others say where it was."""
    rows = [
        ("", "target", "measured", "", "beside", "machine", "commit", "log"),
        *(target_row(target, results.get(target.part)) for target in TARGETS),
    ]
    return markdown([row[:columns] for row in rows])


def target_row(target: Target, result: dict[str, Any] | None) -> tuple[str, ...]:
    """Return a target's row, with what was measured."""
    if result is None:
        return target.what, target.text, "-", "**not run**", target.beside({}), "", "", ""
    figures = result.get("figures", {})
    shown, verdict = target.figure.text(figures), "**failed**"
    if target.figure.name in figures:
        verdict = "reached" if target.reached(figures) else "**missed**"
    elif "failed" not in result:
        verdict = "**not run**"
    from_where = where(result), commit(result), f"`{target.part}.txt`"
    return target.what, target.text, shown, verdict, target.beside(figures), *from_where


def on_gpus(results: Results) -> str:
    """Return the table of an H100's speed: published, aimed at, estimated, measured."""
    estimates = results.get("roofline", {}).get("figures", {})
    step = results.get("gpu-step")
    rows: list[tuple[str, ...]] = [
        (
            "one H100, documents of 1,024 tokens",
            "ModernBERT's own run",
            "aim",
            "roofline",
            "estimate",
            "measured",
        )
    ]
    for name, size in GPU_SIZES.items():
        shown = [
            Figure(f"{name}: {what}, tokens/s", "{:.0f} k tokens/s", 1e3).text(estimates)
            for what in ("published", "aim", "roofline", "estimate")
        ]
        measured = "**never run on a GPU**"
        if step:
            figure = Figure(f"{size}, full, compiled: tokens/s", "{:.0f} k tokens/s", 1e3)
            measured = f"{figure.text(step.get('figures', {}))}, {where(step)}, {commit(step)}"
        rows.append((name, *shown, measured))
    ran = [part.name for part in PARTS if part.gpu and part.name in results]
    head = f"Run on a GPU: {', '.join(ran)}." if ran else "Nothing of this was run on a GPU."
    return f"{head}\n\n{markdown(rows)}"


def part(name: str, results: Results) -> str:
    """Return a part's tables, with its command."""
    result = results.get(name)
    if result is None:
        return f"Not run: `python -m benchmarks --only {name}`."
    head = f"`{result['command']}`; {where(result)}; {commit(result)}"
    if "failed" in result:
        return f"{head}\n\n**Failed**: {result['failed']}"
    tables = [
        f"{table['title']}:\n\n{markdown([table['columns'], *table['rows']])}"
        for table in result["tables"]
    ]
    took = f"{result['seconds']:.0f} s, {result['cpu_s']:.0f} s of the CPU"
    return "\n\n".join([f"{head}; {took}.", *tables])


def where(result: dict[str, Any]) -> str:
    """Return a result's machine, in short."""
    machine = result["machine"]
    cores = f"{machine['cores']} cores, {machine['cpu']}"
    others = result.get("others_cores", 0)
    busy = f", **others kept {others:.1f} busy**" if others > BUSY_CORES else ""
    quick = ", **quick: says nothing**" if result.get("quick") else ""
    return (machine["device"] or cores) + busy + quick


def commit(result: dict[str, Any]) -> str:
    return f"`{result['commit']}`, {result['date']}"


def markdown(rows: list[Any]) -> str:
    """Return a table; the first row is its head."""
    head, *others = rows
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in others)])


def write(results: Results, page: Path = PAGE) -> None:
    """Write a page's tables anew."""
    template = page if page.is_file() else PAGE
    page.write_text(rendered(template.read_text(), results))


def main() -> None:
    """Write all pages."""
    results = load()
    for page in PAGES:
        write(results, page)
        say(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
