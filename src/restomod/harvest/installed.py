"""Which files of the installed distributions are worth harvesting, and in which order.

In: the running Python's library and packages, or folders like them. Out: the files to read, each
with its distribution, in the order of a hash of their names. `data_prep/harvest.py` and
`eval/offline/` call it.
"""

from __future__ import annotations

import csv
import hashlib
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

STDLIB = "python-stdlib"
OWN = "restomod"
MIN_FILE_BYTES = 200
MAX_CODE_BYTES = 300_000
MAX_FILE_BYTES = 1_500_000
"""Larger files are passed over; those above MAX_CODE_BYTES give their docstrings only."""
DISTRIBUTION_MB = {"science": 20.0, "prose": 6.0}
"""Source text that one distribution may contribute, so that none drowns the others."""

SCIENCE = frozenset(
    [
        "astropy",
        "biopython",
        "contourpy",
        "cvxpy",
        "dask",
        "gmpy2",
        "h5py",
        "jax",
        "kiwisolver",
        "matplotlib",
        "mpmath",
        "networkx",
        "numba",
        "numexpr",
        "numpy",
        "pandas",
        "polars",
        "scikit-image",
        "scikit-learn",
        "scipy",
        "seaborn",
        "shapely",
        "statsmodels",
        "sympy",
        "torchmetrics",
        "torchvision",
        "xarray",
    ]
)
TEST_FOLDERS = frozenset(
    ("test", "tests", "testing", "testdata", "test_data", "test-data", "idle_test", "fixtures")
)
VENDOR_FOLDERS = frozenset(
    [
        "_vendor",
        "vendor",
        "vendored",
        "_vendored",
        "third_party",
        "thirdparty",
        "extern",
        "externals",
        "_distutils",
        "_bundled",
        "node_modules",
        "site-packages",
        "dist-packages",
    ]
)
DOC_SUFFIXES = (".rst", ".md", ".txt")
NO_PROSE = re.compile(
    r"licen[sc]e|copying|notice|authors|top_level|entry_points|sources|requirement|cmakelists|"
    r"record|manifest|thanks|contributors|vendor\.txt",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Source:
    """A distribution: its name, and where its files lie."""

    name: str
    version: str
    root: Path
    record: tuple[tuple[str, int], ...] = field(repr=False)
    """(path below root, bytes or -1) of its files."""
    description: str = field(repr=False)

    @property
    def prose_domain(self) -> str:
        """Where its docstrings and documents go."""
        return "science" if self.name in SCIENCE else "prose"


@dataclass(frozen=True)
class FileTask:
    """One file to extract from."""

    source: str
    prose_domain: str
    file: str
    path: Path
    bytes: int
    wants_code: bool = False


def canonical(name: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find_sources(
    search_path: Sequence[str] | None = None, stdlib: Path | None = None
) -> list[Source]:
    """Return the distributions on `search_path` (sys.path if None) by name, and the standard
    library in `stdlib` as one more. Every file belongs to the distribution whose RECORD names it;
    a file that two name belongs to the first."""
    path = sys.path if search_path is None else list(search_path)
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions(path=path):
        name = distribution.metadata["Name"]
        if name and canonical(name) != OWN:
            found.setdefault(canonical(name), distribution)
    owned: set[str] = set()
    sources = []
    for name, distribution in sorted(found.items()):
        root = Path(str(distribution.locate_file("")))
        record = []
        for file, size in _record(distribution):
            if f"{root}/{file}" not in owned:
                owned.add(f"{root}/{file}")
                record.append((file, size))
        description = _description(distribution)
        sources.append(Source(name, distribution.version, root, tuple(record), description))
    if stdlib is not None:
        sources.append(Source(STDLIB, platform.python_version(), stdlib, _walk(stdlib), ""))
    return sorted(sources, key=lambda source: source.name)


def _description(distribution: metadata.Distribution) -> str:
    """Return the text after the headers of METADATA, where all but ancient versions have it."""
    text = (distribution.read_text("METADATA") or "").replace("\r\n", "\n")
    return text.partition("\n\n")[2].strip()


def _record(distribution: metadata.Distribution) -> Iterator[tuple[str, int]]:
    text = distribution.read_text("RECORD")
    if text:
        rows = [(row[0], row[2] if len(row) > 2 else "") for row in csv.reader(text.splitlines())]
    else:
        rows = [(str(file), str(file.size or "")) for file in distribution.files or ()]
    for file, size in rows:
        if not file.startswith(("/", "..")):
            yield file, int(size) if size.isdigit() else -1


def _walk(root: Path) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for parent, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in VENDOR_FOLDERS and f != "__pycache__"]
        found.extend((Path(parent, f).relative_to(root).as_posix(), -1) for f in files)
    return tuple(found)


def hash_key(*parts: str) -> bytes:
    """Return what files and documents are ordered by: a hash of their names."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()


def plan_files(
    sources: Sequence[Source], code_bytes: float, skipped: Counter[str]
) -> list[FileTask]:
    """Return the files worth reading, in the order in which they are taken; count the others."""
    tasks = []
    for source in sources:
        own = []
        for file, size in source.record:
            reason = _reason_by_name(file)
            if reason == "":
                continue
            path = source.root / file
            if reason is None and size < 0:
                size = path.stat().st_size if path.is_file() else 0
            if reason is None and not MIN_FILE_BYTES <= size <= MAX_FILE_BYTES:
                reason = "too_small" if size < MIN_FILE_BYTES else "too_large"
            if reason is not None:
                skipped[reason] += 1
                continue
            own.append(FileTask(source.name, source.prose_domain, file, path, size))
        own.sort(key=lambda task: hash_key(task.source, task.file))
        budget = DISTRIBUTION_MB[source.prose_domain] * 1e6
        for task in own:
            budget -= task.bytes
            if budget < 0:
                skipped["over_distribution_share"] += 1
            else:
                tasks.append(task)
    tasks.sort(key=lambda task: hash_key(task.source, task.file))
    # Code is wanted from the first files only: about half of a file's bytes end up in the corpus.
    planned, code_left = [], 2 * code_bytes
    for task in tasks:
        is_code = task.file.endswith(".py") and task.bytes <= MAX_CODE_BYTES
        wants_code = is_code and code_left > 0
        code_left -= task.bytes if wants_code else 0
        planned.append(
            FileTask(task.source, task.prose_domain, task.file, task.path, task.bytes, wants_code)
        )
    return planned


def _reason_by_name(file: str) -> str | None:
    """Return why a file is passed over, None for a candidate, "" for what is no text at all."""
    if not file.endswith((".py", *DOC_SUFFIXES)):
        return ""
    *parents, name = file.split("/")
    folders = {part.lower() for part in parents}
    if TEST_FOLDERS & folders or re.fullmatch(r"(?:test_.*|.*_test|conftest)\.py", name):
        return "tests"
    if (VENDOR_FOLDERS & folders) or any(part.startswith("_vendor") for part in folders):
        return "vendored"
    if name.endswith("_pb2.py") or name.endswith("_pb2_grpc.py"):
        return "generated"
    if not name.endswith(".py") and (NO_PROSE.search(name) or "licenses" in folders):
        return "licence_or_list"
    return None
