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
from restomod.prepare.atomic import replacing
from restomod.prepare.files import MANIFEST, is_remote, read_bytes
from restomod.prepare.job import Job

TOKENIZER = "tokenizer"
PROBE = ".writable"
PREPARED = "preparation.json"
"""Says that a whole output may replace what is there: beside a tokenizer that was published alone,
and in an object store as long as files go up."""


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
        taken = _foreign(system, inside)
    else:
        folder = Path(out)
        if folder.is_file():
            raise UserError(f"{out}: is a file; choose another out")
        taken = folder.is_dir() and any(
            entry.name != TOKENIZER or not (entry / PREPARED).is_file()
            for entry in folder.iterdir()
        )
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


def _foreign(system: Any, inside: str) -> bool:
    """Return whether an object store's folder holds anything that no preparation left there."""
    found = system.find(inside) if system.exists(inside) else []
    names = {path.removeprefix(f"{inside}/") for path in found}
    if not names or PREPARED in names:
        return False
    alone = all(name.startswith(f"{TOKENIZER}/") for name in names)
    return not (alone and f"{TOKENIZER}/{PREPARED}" in names)


def publish_tokenizer(job: Job, described: dict[str, Any], out: str) -> None:
    """Put a copy of the job's tokenizer into `out`, and what is known of it."""
    text = json.dumps(described, indent=1) + "\n"
    if is_remote(out):
        system, inside = _system(out)
        system.pipe_file(f"{inside}/{TOKENIZER}/{PREPARED}", text.encode())
        for file in sorted((job.output / TOKENIZER).iterdir()):
            system.put_file(str(file), f"{inside}/{TOKENIZER}/{file.name}")
        return
    target = Path(out) / TOKENIZER
    partial = job.folder / f"publish-{uuid.uuid4().hex}"
    shutil.copytree(job.output / TOKENIZER, partial)
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
        if old.exists():
            old.rename(target)  # which stays until the copy is whole
        with replacing(target) as partial:
            shutil.copytree(job.output, partial)
    shutil.rmtree(old, ignore_errors=True)


def _upload(folder: Path, out: str) -> None:
    """Send a folder's files, the manifest last; what was there goes first, its manifest before all
    else. Meanwhile `PREPARED` says that another call may go on."""
    system, inside = _system(out)
    mark, manifest = f"{inside}/{PREPARED}", f"{inside}/{MANIFEST}"
    try:
        system.pipe_file(mark, b"{}")
        if system.exists(manifest):
            system.rm_file(manifest)
        if old := [path for path in system.find(inside) if path != mark]:
            system.rm(old)
        files = [path for path in folder.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: (path == folder / MANIFEST, path)):
            system.put_file(str(file), f"{inside}/{file.relative_to(folder).as_posix()}")
        system.rm_file(mark)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error}; run again to go on") from error


def _system(out: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, inside = fsspec.core.url_to_fs(out)
    except (ImportError, ValueError) as error:
        raise UserError(f"{out}: cannot be opened: {error}") from error
    return system, inside.rstrip("/")
