"""Mutation testing: mutmut changes a line of the packer, the lanes, the masks, the schedules or the
manifest, and some test must fail.

    make mutation

Prints a table by module, and every mutant that survives. Those that no test can or need kill stand
in `survivors.yaml`, each with the reason; any other one is an exit code of 1. What is mutated and
by which tests is in pyproject.toml, `tool.mutmut`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import yaml
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "mutants"
LOG = ROOT / "runs" / "mutmut.txt"
LISTED = Path(__file__).with_name("survivors.yaml")
LEFT = ("survived", "no tests")


def main() -> int:
    shutil.rmtree(WORK, ignore_errors=True)
    began = time.monotonic()
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("w") as log:
        code = subprocess.call(
            [Path(sys.executable).with_name("mutmut"), "run", "--max-children", "2"],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if code:
        sys.stderr.write(f"mutmut ended with {code}: {LOG}\n")
        return 1
    return tell(time.monotonic() - began)


def tell(seconds: float) -> int:
    """Print what became of the mutants; return the exit code."""
    listed = {
        (e["where"], _lines(e["mutant"])): e["why"] for e in yaml.safe_load(LISTED.read_text())
    }
    counts: dict[str, Counter[str]] = {}
    found, new = set(), []
    for meta in sorted(WORK.rglob("*.py.meta")):
        path = meta.relative_to(WORK).with_suffix("")
        results = json.loads(meta.read_text())["exit_code_by_key"]
        counts[str(path)] = tally = Counter()
        for name, code in results.items():
            status = status_by_exit_code[code]
            tally[status] += 1
            if status not in LEFT:
                continue
            mutant = (_where(name), _lines(_changes(name, path)))
            found.add(mutant)
            tally["listed"] += mutant in listed
            if mutant not in listed:
                new.append((name, status, *mutant))
    _table(counts, seconds)
    for name, status, where, lines in new:
        print(f"\n{status}: {name}\n{where}\n" + "\n".join(lines))
    for where, lines in listed.keys() - found:
        print(f"\nlisted, but killed or gone: {where}\n" + "\n".join(lines))
    print(f"\n{len(new)} survivors are not in {LISTED.relative_to(ROOT)}")
    return 1 if new or sum(counts.values(), Counter())["not checked"] else 0


def _table(counts: dict[str, Counter[str]], seconds: float) -> None:
    columns = ("mutants", "killed", "timeout", "survived", "no tests", "listed")
    print(f"{'':<40}" + "".join(f"{column:>10}" for column in columns))
    whole: Counter[str] = Counter()
    for path, tally in counts.items():
        tally["mutants"] = tally.total() - tally["listed"]
        whole += tally
        print(f"{path:<40}" + "".join(f"{tally[column]:>10}" for column in columns))
    print(f"{'all':<40}" + "".join(f"{whole[column]:>10}" for column in columns))
    killed, others = whole["killed"] + whole["timeout"], whole["mutants"] - whole["listed"]
    print(
        f"{killed} of {whole['mutants']} killed ({killed / whole['mutants']:.1%}), "
        f"{killed / others:.1%} of those not listed; {seconds / 60:.0f} minutes"
    )


def _where(name: str) -> str:
    """Return a mutant's function, as its module names it."""
    module, _, function = name.rpartition("__mutmut_")[0].rpartition(".")
    function = function.removeprefix("x").replace("ǁ", ".").lstrip(".")
    return f"{module}.{function.removeprefix('_') if '.' not in function else function}"


def _changes(name: str, path: Path) -> str:
    lines = get_diff_for_mutant(name, path=path).splitlines()
    return "\n".join(line for line in lines[2:] if line.startswith(("-", "+")))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(" ".join((line[0], *line[1:].split())) for line in text.strip().splitlines())


if __name__ == "__main__":
    sys.exit(main())
