"""Runs every benchmark beside its peers and writes one page of what was reached.

    python -m benchmarks                          # all; `make bench`; writes the pages
    python -m benchmarks --only resume,training   # parts or groups; the page keeps the others
    python -m benchmarks --quick                  # small and short, to see that all runs

Each part runs in a process of its own and leaves NAME.json and its log NAME.txt in
benchmarks/results (with --quick in runs/bench-quick, beside a page of its own). A part that fails
is shown as failed and stops no other; the exit code is then 1. Parts for a GPU run where there is
one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import TextIO

from benchmarks import page
from benchmarks.parts import PARTS, Part, chosen
from benchmarks.record import ROOT, commit, machine, say
from benchmarks.targets import TARGETS

QUICK_TOGETHER = 2
QUICK_OUT = ROOT / "runs" / "bench-quick"
PART_TIMEOUT_S = 1800.0
POLICY = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""Threads that wait for others leave the cores to them: steadier, and fair to all contenders."""


def run(part: Part, out: Path, quick: bool) -> tuple[float, bool]:
    """Run a part, its text into its log and, unless it is quick, onto the screen; return its
    seconds, and whether it ended well."""
    began = time.perf_counter()
    say(f"===== {part.name}")
    kept, log = out / f"{part.name}.json", out / f"{part.name}.txt"
    command = [sys.executable, "-m", part.module, *part.arguments, "--json", str(kept)]
    command += ["--quick"] if quick else []
    environment = {**os.environ, **POLICY}
    if part.threads:
        environment["OMP_NUM_THREADS"] = str(part.threads)
    with log.open("w") as file, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        alarm = threading.Timer(PART_TIMEOUT_S, _end, [process])
        alarm.start()
        try:
            wrong = _follow(process, file, echo=not quick)
        finally:
            alarm.cancel()
            _end(process)
        if wrong:
            errors.seek(0)
            said = errors.read().strip()
            say(said)
            _keep_failure(part, kept, said.splitlines()[-1] if said else wrong)
    return time.perf_counter() - began, not wrong


def _follow(process: subprocess.Popen[str], log: TextIO, echo: bool) -> str:
    """Keep what a process says until it ends; return what went wrong."""
    assert process.stdout
    for line in process.stdout:
        log.write(line)
        if echo:
            say(line.rstrip("\n"))
    code = process.wait()
    if code == -signal.SIGKILL:
        return f"killed: short of memory, or longer than {PART_TIMEOUT_S:.0f} s"
    return f"exit code {code}" if code else ""


def _end(process: subprocess.Popen[str]) -> None:
    """End a part and all that it began."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _keep_failure(part: Part, file: Path, words: str) -> None:
    """Leave a result that says so, in the place of an earlier one."""
    command = " ".join(["python -m", part.module, *part.arguments])
    failed = {
        "failed": words.replace(str(ROOT), "."),
        "command": command,
        "commit": commit(),
        "date": str(date.today()),
        "machine": machine(),
    }
    file.write_text(json.dumps(failed, indent=1) + "\n")


def has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def main() -> int:
    """Run the parts asked for; return 0, 1 if one failed, 2 for a wrong word."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help=f"of {', '.join(part.name for part in PARTS)}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and the part that runs is ended
    try:
        parts = chosen(arguments.only.split(",")) if arguments.only else list(PARTS)
    except ValueError as error:
        parser.error(str(error))
    if any(part.gpu for part in parts) and not has_gpu():
        parts = [part for part in parts if not part.gpu]
        say("torch sees no CUDA device here: what needs one is left out")
    out = (arguments.out or (QUICK_OUT if arguments.quick else page.RESULTS)).absolute()
    out.mkdir(parents=True, exist_ok=True)
    # Quick parts measure nothing, so they may share the cores.
    with ThreadPoolExecutor(QUICK_TOGETHER) as pool:
        in_order = pool.map if arguments.quick else map
        ended = in_order(lambda part: run(part, out, arguments.quick), parts)
        took = dict(zip((part.name for part in parts), ended, strict=True))
    results = page.load(out)
    if out == page.RESULTS:
        page.main()
    else:
        page.write(results, out / "performance.md")
        say(f"wrote {out / 'performance.md'}")
    _summarise(took, {} if arguments.quick else results)
    return int(not all(good for _, good in took.values()))


def _summarise(took: dict[str, tuple[float, bool]], results: page.Results) -> None:
    say("")
    for name, (seconds, good) in took.items():
        say(f"{name:<20}{seconds:7.0f} s{'' if good else '  FAILED'}")
    say(f"{'all':<20}{sum(seconds for seconds, _ in took.values()):7.0f} s")
    rows = [page.target_row(t, results.get(t.part)) for t in TARGETS if t.part in results]
    say("")
    for what, bound, found, verdict, *_ in rows:
        say(f"{what:<82}{bound:<24}{found:<18}{verdict.strip('*')}")


if __name__ == "__main__":
    sys.exit(main())
