"""What the preparation scripts share: exit codes, outputs that appear whole, their manifest.

A script's `main(argv)` hands its parsed arguments and its work to `run`, and the work writes into
the folder that `publish` opens: a hidden sibling of the output, renamed into place at the very end.
So an output folder is complete or not there, and what a killed run leaves is removed by the next.

`manifest.json` in the output folder:

    script, format     which script wrote it, and the version of what it writes
    options            every option that changes the output
    inputs             [{path, bytes, mtime_ns}, ...] (in an object store `version` stands for the
                       time), or what the script says it reads
    result             what the script counted: documents read and kept, dropped and altered by
                       reason, bytes, tokens, the tokenizer's fingerprint
    problems           the first messages about what was dropped, naming file and line
    versions           Python and the libraries that decide the bytes of the output
    seconds            wall time

The first four are compared when a script runs again (`versions` is not, so that an upgrade does not
throw data away); if they agree the run is skipped, `--refresh` rewrites when they differ, `--force`
rewrites always.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.prepare.files import InputFile, is_remote

MANIFEST = "manifest.json"


def run(work: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Do the work and return the exit code: 0, or 2 with one message on stderr."""
    try:
        work(arguments)
    except UserError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; nothing was written")
        return 130
    return 0


def say(message: str) -> None:
    """Tell the user something, on stderr."""
    print(message, file=sys.stderr, flush=True)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `is_current` reads."""
    parser.add_argument(
        "--refresh",
        action="store_true",
        help="rewrite the output if its inputs or options changed (refused otherwise)",
    )
    parser.add_argument("--force", action="store_true", help="rewrite the output in any case")


def progress(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """A tqdm bar, shown on a terminal only."""
    from tqdm import tqdm

    return tqdm(items, disable=not sys.stderr.isatty(), **options)


def versions(*distributions: str) -> dict[str, str]:
    """Return the versions of Python and of `distributions`."""
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in distributions}}


def describe_files(files: Iterable[InputFile]) -> list[dict[str, Any]]:
    """Return path, size and modification time, or an object store's version, of each file, for a
    manifest's inputs."""
    described = []
    for file in files:
        entry: dict[str, Any] = {"path": file.path, "bytes": file.size, "version": file.version}
        if not is_remote(file.path):
            path, changed = str(Path(file.path)), int(file.version or 0)
            entry = {"path": path, "bytes": file.size, "mtime_ns": changed}
        described.append(entry)
    return described


@dataclass
class Manifest:
    """What was done; see the top of this file."""

    script: str
    format: int
    options: dict[str, Any]
    inputs: list[dict[str, Any]]
    versions: dict[str, str]
    result: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def identity(self) -> dict[str, Any]:
        """What must agree for an existing output to be this one."""
        return {
            "script": self.script,
            "format": self.format,
            "options": self.options,
            "inputs": self.inputs,
        }


def is_current(out: Path, manifest: Manifest, *, force: bool, refresh: bool) -> bool:
    """Return whether `out` already holds what `manifest` describes; say so if it does.

    Raises UserError when `out` holds anything else and neither flag allows replacing it; a folder
    that no script of ours wrote is never replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        recorded = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        script = recorded["script"]
    except (OSError, ValueError, KeyError, TypeError):
        script = None
    if script != manifest.script:
        raise UserError(
            f"{out}: exists and was not written by {manifest.script}; choose another --out, or "
            "delete it first"
        )
    if force:
        return False
    identity = json.loads(json.dumps(manifest.identity()))
    differences = _differences(recorded, identity)
    if not differences:
        say(f"{out}: up to date")
        return True
    if refresh:
        say(f"{out}: rewriting, because of {'; '.join(differences)}")
        return False
    raise UserError(
        f"{out}: was written with other settings ({'; '.join(differences)}); pass --refresh to "
        "rewrite it, or choose another --out"
    )


def _differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    found = []
    if recorded.get("format") != wanted["format"]:
        found.append(f"format {recorded.get('format')} -> {wanted['format']}")
    before = recorded.get("options") or {}
    for name, value in wanted["options"].items():
        if before.get(name) != value:
            found.append(f"{name} {before.get(name)!r} -> {value!r}")
    if recorded.get("inputs") != wanted["inputs"]:
        old = {json.dumps(entry, sort_keys=True) for entry in recorded.get("inputs") or []}
        changed = [e for e in wanted["inputs"] if json.dumps(e, sort_keys=True) not in old]
        names = [str(e.get("path") or e.get("name")) for e in changed]
        found.append(f"changed inputs {', '.join(names[:3])}" if names else "fewer inputs")
    return found


@contextmanager
def publish(out: Path, manifest: Manifest) -> Iterator[Path]:
    """Open a folder to write into, and rename it to `out` when the block ends without an error.

    Fill in `manifest.result` inside the block; the manifest is written last.
    """
    started = time.perf_counter()
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out)
        partial = out.parent / f".{out.name}.partial-{os.getpid()}"
        partial.mkdir()
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield partial
        text = json.dumps(
            {
                **manifest.identity(),
                "result": manifest.result,
                "problems": manifest.problems,
                "versions": manifest.versions,
                "seconds": round(time.perf_counter() - started, 2),
            },
            indent=1,
        )
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
        if out.exists():
            old = out.parent / f".{out.name}.partial-old-{os.getpid()}"
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    finally:
        os.close(lock)
        shutil.rmtree(partial, ignore_errors=True)


def _remove_stale(out: Path) -> None:
    """Remove what killed runs left; a folder that is still being written is locked."""
    for leftover in out.parent.glob(f".{out.name}.partial-*"):
        lock = os.open(leftover, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def report_problems(problems: Sequence[str], shown: int = 5) -> None:
    """Tell the user about what was dropped; the manifest has more."""
    for problem in problems[:shown]:
        say(f"warning: {problem}")
    if len(problems) > shown:
        say(f"warning: and {len(problems) - shown} more, see {MANIFEST}")
