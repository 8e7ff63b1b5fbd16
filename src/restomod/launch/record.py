"""What a start on a node was: its command, its code and its environment, without secrets.

Leaves a line of JSON in `starts.jsonl` beside the node's logs. `node.py` and `submit.py` call it.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from restomod.launch.words import is_secret
from restomod.provenance import changed_files, git, versions

KEPT = re.compile(
    "(NCCL|GLOO|TORCH|CUDA|OMP|FI|UCX|SLURM|KUBERNETES|JOB|SKYPILOT|RESTOMOD|PYTHON|HF|TRITON).*"
    "|PATH|LD_LIBRARY_PATH|VIRTUAL_ENV"
)
"""Variables that are recorded with their values."""
PACKAGES = ("restomod", "torch", "mosaicml", "mosaicml-streaming", "transformers", "numpy")


def record_start(
    folder: Path, words: Sequence[str], command: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Append a line about this start to `folder`/starts.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "words": list(words),
        "command": list(command),
        "git": git_state(Path.cwd()) or {"commit": environment.get("RESTOMOD_COMMIT", "")},
        "versions": versions(PACKAGES),
        "environment": kept(environment),
    }
    with (folder / "starts.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that matter to a run and hold no secret."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if KEPT.fullmatch(name) and not is_secret(name, value)
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit, the changed files and a digest of the changes; None without git.

    The changes themselves are not kept: a secret may be among them.
    """
    commit = git(folder, "rev-parse", "HEAD")
    difference = git(folder, "diff", "HEAD")
    if commit is None or difference is None:
        return None
    return {
        "commit": commit,
        "changed": changed_files(folder),
        "diff_sha256": hashlib.sha256(difference.encode()).hexdigest() if difference else "",
    }


def describe_commit(folder: Path) -> str:
    """Return the commit, with a mark where files differ from it; unknown without git."""
    state = git_state(folder)
    return state["commit"] + ("+changes" if state["changed"] else "") if state else "unknown"
