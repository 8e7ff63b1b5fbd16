"""The node's cache folder: shards that were downloaded or unpacked, within a limit.

Several processes, ranks and runs may share a folder. A file appears under its name only when it is
whole and its hash is right. Whoever reads a shard holds a shared lock on it, so that making room
never takes what is in use; locks end with their process, however it ends. `data/shards.py` is the
caller.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from restomod.errors import UserError

log = logging.getLogger(__name__)

LOCKS = 64
"""Lock files that keep two processes from making the same shard at once."""
PARTIAL = ".partial"
LEFTOVER_S = 600
"""Age from which an unlocked partial file is taken for a killed process's."""


class Cache:
    """Files below `root`, at most `limit_bytes` of them, the least recently used removed first."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self.root = root
        self._limit_bytes = limit_bytes

    @contextmanager
    def making(self, path: Path, size: int) -> Iterator[Path]:
        """Make the file `path` of `size` bytes: write it under the name that is given to the block,
        which is renamed when the block ends without an error.

        Raises UserError if the disk has no room, with what was written removed.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
        self._make_room(size)
        try:
            with partial.open("wb") as held:
                fcntl.flock(held, fcntl.LOCK_SH)
                yield partial
                os.replace(partial, path)
        except OSError as error:
            if not _is_full(error):
                raise
            raise UserError(
                f"{self.root}: the disk is full: {path.name} needs {size / 1e6:.1f} MB; free some "
                "space, lower data.cache_limit_gb, or move cache_dir"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def alone(self, path: Path) -> Iterator[None]:
        """Keep other processes and threads from making `path` meanwhile."""
        number = int.from_bytes(hashlib.sha256(str(path).encode()).digest()[:4]) % LOCKS
        with self._locked(str(number)):
            yield

    def remove_leftovers(self) -> None:
        """Remove what killed processes were writing."""
        for partial in self.root.rglob(f"*{PARTIAL}"):
            with suppress(OSError):
                if time.time() - partial.stat().st_mtime > LEFTOVER_S:
                    _remove_unless_locked(partial)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, size: int) -> None:
        with self._locked("room"):
            files = []
            for file in self.root.rglob("*"):
                with suppress(OSError):
                    status = file.stat()
                    if file.is_file() and file.parent.name != "locks":
                        files.append((status.st_mtime_ns, status.st_size, file))
            excess = sum(length for _, length, _ in files) + size - self._limit_bytes
            for _, length, file in sorted(files):
                if excess <= 0:
                    return
                with suppress(OSError):
                    if file.name != "index.json" and _remove_unless_locked(file):
                        excess -= length
        if excess > 0:
            raise UserError(
                f"{self.root}: all shards in the cache are in use and {excess / 1e6:.1f} MB more "
                f"than data.cache_limit_gb ({self._limit_bytes / 1e9:g}) are needed: raise it"
            )


def _remove_unless_locked(file: Path) -> bool:
    with file.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        file.unlink()
    return True


def lock_shared(descriptor: int) -> None:
    """Mark an open cache file as in use until the descriptor is closed."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def _is_full(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def retried(attempts: int, pause: Callable[[float], None], what: Callable[[], None]) -> None:
    """Do `what`, again after growing pauses (1, 2, 4, ... 30 s) while it raises; the last error is
    raised. UserErrors and a full disk are not tried again."""
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
