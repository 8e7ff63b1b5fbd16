"""What a benchmark finds, said on standard output and kept as JSON, with machine and commit.

In: tables and figures, as a benchmark comes to them. Out: text, and with `--json FILE` the same for
`benchmarks/page.py`. Figures are what targets are held against; tables are for reading.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GENERATED = ("benchmarks/results", "docs/performance.md", "docs/scale.md", "README.md")
"""What benchmarks write: changes there are none of the code's."""
LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "mosaicml-streaming", "numpy")
SAID_POLICY = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables that change how fast a CPU computes."""


def parser_of(module_doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=(module_doc or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results there, too")
    parser.add_argument("--quick", action="store_true", help="small and short: says nothing")
    return parser


class Table:
    """Rows under a title, printed as they come."""

    def __init__(self, title: str, columns: tuple[str, ...]) -> None:
        self.title, self.columns = title, columns
        self.rows: list[tuple[str, ...]] = []
        self._widths = [max(10, len(name)) for name in columns[1:]]
        say(f"\n{title}")
        self._print(columns)

    def row(self, *cells: str) -> None:
        assert len(cells) == len(self.columns), (cells, self.columns)
        self.rows.append(cells)
        self._print(cells)

    def _print(self, cells: tuple[str, ...]) -> None:
        first, *others = cells
        rest = "".join(f"  {x:>{width}}" for x, width in zip(others, self._widths, strict=True))
        say(f"  {first:<40}{rest}")


class Report:
    """A benchmark's results; as a context, it writes them when the benchmark ends well."""

    def __init__(self, options: argparse.Namespace, device: str = "") -> None:
        self._quick = options.quick
        self.figures: dict[str, float] = {}
        self._file = options.json
        self._tables: list[Table] = []
        self._machine = machine(device)
        self._commit, self._date = commit(), str(date.today())
        self._command = command()
        say(self._command)
        say(f"commit {self._commit}, {self._date}; {in_words(self._machine)}")
        versions = self._machine["versions"]
        say(", ".join(f"{name} {version}" for name, version in versions.items()))
        self._started, self._busy, self._own = time.perf_counter(), busy_s(), own_s()

    def table(self, title: str, *columns: str) -> Table:
        """Begin a table; the first column names the row."""
        self._tables.append(Table(title, columns))
        return self._tables[-1]

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None:
            return
        seconds = time.perf_counter() - self._started
        own = own_s() - self._own
        # Cores' times come in hundredths of a second: less than one of all tells nothing.
        others = max(0.0, busy_s() - self._busy - own) / seconds if seconds > 1 else 0.0
        say(f"\n{seconds:.0f} s, {own:.0f} s of the CPU; others kept {others:.2f} cores busy")
        if not self._file:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "command": self._command,
            "commit": self._commit,
            "date": self._date,
            "quick": self._quick,
            "machine": self._machine,
            "seconds": round(seconds, 1),
            "cpu_s": round(own, 1),
            "others_cores": round(others, 2),
            "figures": {name: float(f"{x:.5g}") for name, x in sorted(self.figures.items())},
            "tables": [
                {"title": table.title, "columns": table.columns, "rows": table.rows}
                for table in self._tables
            ],
        }
        self._file.write_text(json.dumps(found, indent=1) + "\n")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def command() -> str:
    """Return this process's command, without paths."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    name = specification.name.removesuffix(".__main__") if specification else "benchmarks"
    given = list(sys.argv[1:])
    if "--json" in given:  # where results go changes none
        del given[given.index("--json") : given.index("--json") + 2]
    policy = [f"{name}={os.environ[name]}" for name in SAID_POLICY if name in os.environ]
    return " ".join([*policy, "python -m", name, *given])


def commit() -> str:
    """Return the commit that runs, and whether anything but results was changed since."""
    head = _git("rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    excluded = [f":!{path}" for path in GENERATED]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    return head + (" with changes" if changed else "")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def machine(device: str = "") -> dict[str, Any]:
    """Describe what this runs on, without names or paths."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "device": device,
        "versions": {"Python": platform.python_version(), **_versions()},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def in_words(machine: dict[str, Any]) -> str:
    """Return a machine on one line."""
    device = f"{machine['device']}; " if machine["device"] else ""
    return f"{device}{machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB"


def busy_s() -> float:
    """Return the seconds that all processes have kept cores busy; 0 where that is not told."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_s() -> float:
    """Return the CPU seconds of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
