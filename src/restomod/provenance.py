"""What computed something: versions of packages, and the state of a git repository.

Runs, starts of nodes, suites, fine-tunings and preparations record it. Imports no torch.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

GIT_TIMEOUT_S = 5.0


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of Python, and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git(folder: Path, *words: str) -> str | None:
    """Return what a git command prints, without its last line's end; None if it fails, if there is
    no git, or if it takes longer than GIT_TIMEOUT_S."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def changed_files(folder: Path) -> list[str]:
    """Return the files of a repository that git knows and that differ from its commit."""
    changes = git(folder, "status", "--porcelain", "--untracked-files=no") or ""
    return [line[3:] for line in changes.splitlines()]
