"""The node's cache folder: shards that were downloaded or unpacked, within a limit.

Several processes, ranks and runs may share a folder. A file appears under its name only when it is
whole and its hash is right; while it is made, its full size already counts. Whoever reads a shard
or makes one holds a shared lock on it, so that making room never takes what is in use; locks end
with their process, however it ends. The root may hold other files: only our own folders in it,
named by 16 hexadecimal digits, count and are cleared. `data/files.py` and `data/shards.py` call
this.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from restomod.errors import UserError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

LOCKS = 64
"""Lock files that keep two processes from making the same shard at once."""
LOCK_FOLDER = "locks"
DOWNLOADS = "downloads"
FOLDERS = re.compile(rf"[0-9a-f]{{16}}|{DOWNLOADS}")
"""Those below the root that hold our files."""
PARTIAL = ".partial"
LEFTOVER_S = 600
"""Time without a byte from which a download is taken for a killed process's."""


class Cache:
    """Files below `root`, at most `limit_bytes` of them, the least recently used removed first."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self.root = root
        self._limit_bytes = limit_bytes

    @contextmanager
    def making(self, path: Path, size: int) -> Iterator[BinaryIO]:
        """Make the file `path` of `size` bytes out of what the block writes into the file that it
        is given; it gets its name when the block ends without an error.

        Raises UserError if the disk has no room or cannot be written, with what was written
        removed.
        """
        partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
        try:
            with self.writing(path.name):
                path.parent.mkdir(parents=True, exist_ok=True)
                with self._locked("room"):  # where nobody takes it for a leftover before its lock
                    self._make_room(size)
                    held = partial.open("wb")
                    fcntl.flock(held, fcntl.LOCK_SH)
                    held.truncate(size)
                with held:
                    yield held
                    held.flush()
                    os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Raise UserError saying what to do where the disk is full or cannot be written."""
        try:
            yield
        except Exception as error:
            if _is_full(error):
                raise self._full(name) from error
            if isinstance(error, OSError):
                reason = error.strerror or error
                raise UserError(
                    f"{self.root}: {name} cannot be written: {reason}; move cache_dir"
                ) from error
            raise

    @contextmanager
    def downloading(self, name: str) -> Iterator[Path]:
        """Give the block a file to download into, of which nothing stays."""
        folder = self.root / DOWNLOADS
        with self.writing(name):
            folder.mkdir(parents=True, exist_ok=True)
        unique = f"{os.getpid()}.{threading.get_ident()}.{time.monotonic_ns()}"
        path = folder / f"{Path(name).name}.{unique}{PARTIAL}"
        try:
            yield path
        except Exception as error:
            if _is_full(error):
                raise self._full(name) from error
            raise
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def alone(self, path: Path) -> Iterator[None]:
        """Keep other processes and threads from making `path` meanwhile."""
        number = int.from_bytes(hashlib.sha256(str(path).encode()).digest()[:4]) % LOCKS
        with self._locked(str(number)):
            yield

    def remove_leftovers(self) -> None:
        """Remove what killed processes were writing."""
        found = [file for file, status in self._files() if _is_leftover(file, status)]
        if found:
            with self._locked("room"):
                for file in found:
                    with suppress(OSError):
                        _remove_unless_locked(file)

    def _full(self, name: str) -> UserError:
        return UserError(
            f"{self.root}: the disk is full, {name} has no room; free some space, lower "
            "data.cache_limit_gb, or move cache_dir"
        )

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        folder = self.root / LOCK_FOLDER
        with self.writing("a lock"):
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / name).open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, size: int) -> None:
        """Call this with the lock `room`."""
        files = [
            (not _is_leftover(file, status), status.st_mtime_ns, status.st_size, file)
            for file, status in self._files()
        ]
        excess = sum(length for _, _, length, _ in files) + size - self._limit_bytes
        for _, _, length, file in sorted(files):
            if excess <= 0:
                return
            if file.parent.name != DOWNLOADS:
                with suppress(OSError):
                    if _remove_unless_locked(file):
                        excess -= length
        if excess > 0:
            raise UserError(
                f"{self.root}: all shards in the cache are in use and {excess / 1e6:.3g} MB more "
                f"than data.cache_limit_gb ({self._limit_bytes / 1e9:g}) are needed: raise it"
            )

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the files that are ours, but the locks, with their status."""
        for parent, folders, names in os.walk(self.root):
            if Path(parent) == self.root:
                folders[:] = [name for name in folders if FOLDERS.fullmatch(name)]
                continue
            for name in names:
                with suppress(OSError):  # removed meanwhile
                    yield Path(parent, name), os.stat(os.path.join(parent, name))


def _is_leftover(file: Path, status: os.stat_result) -> bool:
    """Return whether a file, if nobody has locked it, is a killed process's: shards are locked
    while they are made, downloads cannot be."""
    if file.parent.name == DOWNLOADS:
        return time.time() - status.st_mtime > LEFTOVER_S
    return file.suffix == PARTIAL


def _remove_unless_locked(file: Path) -> bool:
    with file.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        file.unlink()
    return True


def lock_shared(descriptor: int) -> None:
    """Mark an open cache file as in use until the descriptor and all copies of it are closed."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def _is_full(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def retried(attempts: int, pause: Callable[[float], None], what: Callable[[], Result]) -> Result:
    """Return what `what` does, tried again after growing pauses (1, 2, 4, ... 30 s) while it
    raises; the last error is raised. UserErrors and a full disk are not tried again."""
    for attempt in range(1, attempts + 1):
        try:
            return what()
        except UserError:
            raise
        except Exception as error:
            if attempt == attempts or _is_full(error):
                raise
            delay = min(30.0, 2.0 ** (attempt - 1))
            log.warning("%s; trying again in %.0f s (%d of %d)", error, delay, attempt, attempts)
            pause(delay)
    raise ValueError(f"{attempts} attempts")
