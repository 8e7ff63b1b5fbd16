"""The output's place, a folder or an object store: what is there, and moving the new one in.

In: the output that a job has put together in its work folder, and `out`. Out: a complete `out`; a
remote one is complete when its manifest is there, which goes up last. `pipeline.py` is the caller.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.prepare.files import MANIFEST, is_remote, read_bytes
from restomod.prepare.job import Job

TOKENIZER = "tokenizer"
PROBE = ".writable"
PREPARED = "preparation.json"
"""Beside a tokenizer that was published alone, so that the whole output may replace it."""


def published_manifest(out: str) -> dict[str, Any] | None:
    """Return the manifest in `out`; None if it holds none of a preparation's."""
    try:
        manifest = json.loads(read_bytes(f"{out.rstrip('/')}/{MANIFEST}"))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise UserError(f"{out}: is a file; choose another out") from error
    except ValueError:
        return None
    except Exception as error:  # each store's library has its own, for wanting credentials say
        raise UserError(f"{out}: cannot be read: {error}") from error
    return manifest if isinstance(manifest, dict) and "recipe" in manifest else None


def check_target(out: str) -> None:
    """Raise UserError if something that no preparation wrote is in the way."""
    if is_remote(out):
        system, inside = _system(out)
        taken = system.exists(inside) and list(system.find(inside))
    else:
        folder = Path(out)
        if folder.is_file():
            raise UserError(f"{out}: is a file; choose another out")
        taken = folder.is_dir() and [
            entry
            for entry in folder.iterdir()
            if entry.name != TOKENIZER or not (entry / PREPARED).is_file()
        ]
    if taken:
        raise UserError(
            f"{out}: exists and holds no finished preparation; choose another out, or delete it"
        )
    try:  # better now than after hours
        if is_remote(out):
            system.pipe_file(f"{inside}/{PROBE}", b"-")
            system.rm_file(f"{inside}/{PROBE}")
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}."):
                pass
    except Exception as error:
        raise UserError(f"{out}: cannot be written: {error}") from error


def publish_tokenizer(job: Job, described: dict[str, Any], out: str) -> None:
    """Put a copy of the job's tokenizer into `out`, and what is known of it."""
    if is_remote(out):
        system, inside = _system(out)
        for file in sorted((job.output / TOKENIZER).iterdir()):
            system.put_file(str(file), f"{inside}/{TOKENIZER}/{file.name}")
        return
    target = Path(out) / TOKENIZER
    partial = job.folder / f"publish-{uuid.uuid4().hex}"
    shutil.copytree(job.output / TOKENIZER, partial)
    text = json.dumps(described, indent=1) + "\n"
    (partial / PREPARED).write_text(text, encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    shutil.move(partial, target)


def move_into_place(job: Job, out: str) -> None:
    """Make the job's output the content of `out`, whatever an earlier one left there."""
    if is_remote(out):
        _upload(job.output, out)
        return
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.parent / f".{target.name}.old-{uuid.uuid4().hex}"
    if target.exists():
        target.rename(old)
    try:
        job.output.rename(target)
    except OSError:  # another file system
        partial = target.parent / f".{target.name}.partial-{uuid.uuid4().hex}"
        shutil.copytree(job.output, partial)
        partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _upload(folder: Path, out: str) -> None:
    system, inside = _system(out)
    try:
        if system.exists(inside):
            if system.exists(f"{inside}/{MANIFEST}"):
                system.rm_file(f"{inside}/{MANIFEST}")
            system.rm(inside, recursive=True)
        files = [path for path in folder.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: (path == folder / MANIFEST, path)):
            system.put_file(str(file), f"{inside}/{file.relative_to(folder).as_posix()}")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error}; run again to go on") from error


def _system(out: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, inside = fsspec.core.url_to_fs(out)
    except (ImportError, ValueError) as error:
        raise UserError(f"{out}: cannot be opened: {error}") from error
    return system, inside.rstrip("/")
