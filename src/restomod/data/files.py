"""The files of an MDS folder: read where they lie, or fetched and unpacked into the cache.

In: a path, local or of a remote that Streaming downloads from, and the index. Out: paths of raw
shards whose size and hash are as recorded. A copy in the cache that proves damaged is made anew; a
download that fails or arrives damaged is tried again. `data/shards.py` is the caller.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Any

from restomod.config import DataConfig
from restomod.data.cache import Cache, retried
from restomod.data.mds import Index, Stored, decompress, digest
from restomod.errors import UserError, within


class DamagedShardError(UserError):
    """A shard that is missing or damaged, and stayed so."""


class _ArrivedDamaged(Exception):
    """A download that is not what the index records."""


class ShardFiles:
    """The files of stream `name` in `path`. `index` is set once it has been read."""

    index: Index

    def __init__(self, name: str, path: str, cache: Cache, settings: DataConfig) -> None:
        self.name = name
        self.path = path
        self._cache = cache
        self._settings = settings
        self._verified: set[int] = set()
        self._downloaders: dict[tuple[int, int], Any] = {}
        """By process and thread."""

    @property
    def cached(self) -> bool:
        """Whether shards are copied into the cache, being remote or compressed."""
        return self.remote or self.index.packed is not None

    def forget(self, shard: int) -> None:
        """Check a shard again when it is next needed: it was removed from the cache."""
        self._verified.discard(shard)

    def label(self, file: str) -> str:
        """Return the full name of a file, for a message."""
        return f"{self.path.rstrip('/')}/{file} (stream {self.name})"

    @property
    def remote(self) -> bool:
        """Whether files are downloaded."""
        return "://" in self.path

    def read_index(self) -> bytes:
        """Return the content of index.json."""
        if not self.remote:
            content = self._read_local("index.json")
            if content is None:
                raise UserError(self._no_data_set(Path(self.path)))
            return content
        try:
            return self._download("index.json", self._settings.download_attempts)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.label('index.json')}: cannot be downloaded: {error}") from error

    def _read_local(self, file: str) -> bytes | None:
        """Return a file of a local folder, None if there is none."""
        path = Path(self.path) / file
        try:
            return path.read_bytes() if path.is_file() else None
        except OSError as error:
            raise UserError(f"{self.label(file)}: cannot be read: {error.strerror}") from error

    def _no_data_set(self, folder: Path) -> str:
        """Say why a local folder holds no data set, and where one may be."""
        if folder.is_file():
            return (
                f"{folder} (stream {self.name}): is a file; `restomod prepare` or "
                "data_prep/write_mds.py makes a data folder out of it"
            )
        if not folder.is_dir():
            return f"{folder} (stream {self.name}): no such data folder{within(folder)}"
        inside = sorted(path.parent for path in folder.glob("*/index.json"))
        inside += sorted(path.parent for path in folder.glob("*/*/index.json"))
        hint = "`restomod prepare` or data_prep/write_mds.py makes one"
        if inside:
            hint = f"name one of those inside it: {', '.join(map(str, inside[:4]))}"
        missing = self.label("index.json")
        return f"{missing}: is missing, so the folder is no MDS data set; {hint}"

    def read_beside(self, file: str) -> bytes | None:
        """Return a file beside the index, None if there is none."""
        if not self.remote:
            return self._read_local(file)

        def fetch() -> bytes | None:
            try:
                return self._download(file, attempts=1)
            except Exception as error:
                if not _is_missing(error):
                    raise
                return None

        try:
            return retried(self._settings.download_attempts, time.sleep, fetch)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.label(file)}: cannot be downloaded: {error}") from error

    def _download(self, file: str, attempts: int) -> bytes:
        """Fetch one file of a remote data set through Streaming and return its content."""
        from streaming.base.storage import CloudDownloader

        with self._cache.downloading(file) as temporary:
            # Kept, as S3's takes 0.2 s to make; connections outlive neither a fork nor a failure.
            key = os.getpid(), threading.get_ident()

            def fetch() -> None:
                downloader = self._downloaders.pop(key, None) or CloudDownloader.get(self.path)
                downloader.download(
                    f"{self.path.rstrip('/')}/{file}",
                    str(temporary),
                    timeout=self._settings.download_timeout_s,
                )
                self._downloaders[key] = downloader

            retried(attempts, time.sleep, fetch)
            return temporary.read_bytes()

    def prepare(self, shard: int) -> Path:
        """Return the path of a raw shard whose content is as recorded, made if need be."""
        raw = self.index.raw[shard]
        path = (
            Path(self.path) / raw.file
            if not self.cached
            else self._cache.root / self.index.fingerprint[:16] / raw.file
        )
        if shard in self._verified and path.exists():
            return path
        label = self.label(raw.file)
        try:
            if not self.cached:
                if not path.is_file():
                    raise DamagedShardError(f"{label}: the shard is missing")
                problem = _file_problem(path, raw)
                if problem:
                    raise DamagedShardError(f"{label}: the shard is damaged: {problem}")
            else:
                with self._cache.alone(path):
                    if not _is_whole(path, raw):
                        self._make(shard, path)
        except OSError as error:
            lost = error.errno == errno.EIO
            raise (DamagedShardError if lost else UserError)(
                f"{label}: cannot be read: {error}"
            ) from error
        self._verified.add(shard)
        return path

    def _make(self, shard: int, path: Path) -> None:
        """Write the raw form of a compressed or remote shard to `path`, checked on both sides."""
        index = self.index
        packed = index.packed[shard] if index.packed else index.raw[shard]
        content = self._fetch(packed)
        if index.packed:
            try:
                content = decompress(index.compression, content)
            except ValueError as error:
                raise DamagedShardError(
                    f"{self.label(packed.file)}: the shard is damaged: {error}"
                ) from error
            problem = _problem(content, index.raw[shard])
            if problem:
                raise DamagedShardError(
                    f"{self.label(packed.file)}: the shard is damaged: unpacked, {problem}"
                )
        with self._cache.making(path, len(content)) as file:
            file.write(content)

    def _fetch(self, stored: Stored) -> bytes:
        """Return a shard as it is stored, with the right hash."""
        label = self.label(stored.file)
        if not self.remote:
            source = Path(self.path) / stored.file
            if not source.is_file():
                raise DamagedShardError(f"{label}: the shard is missing")
            content = source.read_bytes()
            problem = _problem(content, stored)
            if problem:
                raise DamagedShardError(f"{label}: the shard is damaged: {problem}")
            return content

        def fetch() -> bytes:
            content = self._download(stored.file, attempts=1)
            problem = _problem(content, stored)
            if problem:
                raise _ArrivedDamaged(f"{label}: the shard arrived damaged: {problem}")
            return content

        try:
            return retried(self._settings.download_attempts, time.sleep, fetch)
        except UserError:
            raise
        except Exception as error:
            # That a remote cannot be reached is no reason to leave its shards out.
            lost = _is_missing(error) or _is_damaged(error)
            raise (DamagedShardError if lost else UserError)(
                f"{label}: cannot be downloaded in {self._settings.download_attempts} attempts: "
                f"{error}"
            ) from error


def _is_missing(error: BaseException) -> bool:
    """Return whether a remote said that there is no such file, which each does in its own way."""
    answer: Any = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore
        return answer.get("Error", {}).get("Code") in ("404", "NoSuchKey")
    return isinstance(error, FileNotFoundError) or getattr(answer, "status_code", None) == 404


def _is_damaged(error: BaseException) -> bool:
    """Return whether a download came to its end, but is wrong: by our hash or by the remote's."""
    return isinstance(error, _ArrivedDamaged) or "Checksum" in type(error).__name__


def _is_whole(path: Path, stored: Stored) -> bool:
    """Return whether a file of the cache is there and as recorded."""
    try:
        return not _file_problem(path, stored)
    except FileNotFoundError:  # perhaps removed this instant
        return False


def _file_problem(path: Path, stored: Stored) -> str:
    """Return how a file differs from its recorded size and hash, read through a map rather than
    into memory."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != stored.bytes or not stored.bytes:
            return _problem(file.read(), stored)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _problem(content, stored)


def _problem(content: bytes | mmap.mmap, stored: Stored) -> str:
    """Return how content differs from its recorded size and hash; nothing: an empty text."""
    if len(content) != stored.bytes:
        return f"{len(content)} bytes, {stored.bytes} are recorded"
    if stored.algorithm:
        actual = digest(stored.algorithm, content)
        if actual != stored.digest:
            return f"its {stored.algorithm} is {actual}, not {stored.digest}"
    return ""
