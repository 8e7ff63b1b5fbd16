"""Input files, on disk and in object stores: which there are, how each is read, what identifies it.

In: paths, folders and patterns of a recipe. Out: an `InputFile` for each file that holds documents,
in the order of their paths. A folder's own description is heeded: of an MDS folder its index's
shards are taken, of a Hugging Face folder (`save_to_disk`) the files that its state names, and of a
`DatasetDict` one split; of a hub snapshot the files named for the split that is asked for, and not
its README.md. `pieces.py` cuts the files, `readers.py` reads them.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from restomod.errors import UserError, within

LINE_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".txt", ".md")
COMPRESSIONS = (".gz", ".zst")
MANIFEST = "manifest.json"
MDS_INDEX = "index.json"
SPLITS_FILE = "dataset_dict.json"
STATE_FILE = "state.json"
README = "README.md"
DESCRIPTIONS = (MANIFEST, "dataset_info.json", "dataset_infos.json", STATE_FILE, SPLITS_FILE)
"""Files of a folder that describe data instead of holding any."""


@dataclass(frozen=True)
class InputFile:
    """One file to read."""

    path: str
    kind: str
    """lines, text, parquet, arrow or mds."""
    compression: str = ""
    """.gz, .zst or nothing; of an MDS shard as its index spells it."""
    size: int = 0
    """Bytes, compressed where it is."""
    version: str = ""
    """Changes with the file's content: its modification time, or the object store's tag."""
    columns: tuple[tuple[str, str], ...] = ()
    """(name, encoding) of an MDS shard's columns."""


@dataclass
class Found:
    """Files, and what was passed over."""

    files: list[InputFile] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Files of folders that are not read, by suffix or reason."""


def kind_of(name: str) -> tuple[str, str] | None:
    """Return (kind, compression) of a file by its name, None if it is of no kind we read."""
    path = PurePosixPath(name)
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    suffix = PurePosixPath(path.stem).suffix.lower() if compression else path.suffix.lower()
    if suffix in LINE_SUFFIXES:
        return "lines", compression
    if suffix in TEXT_SUFFIXES:
        return "text", compression
    if suffix in (".parquet", ".arrow") and not compression:
        return suffix[1:], ""
    return None


def find_files(paths: Sequence[str | Path], split: str = "", own: Sequence[str] = ()) -> Found:
    """Return the files that `paths` stand for: files as given, patterns and folders sorted, folders
    recursively. What is hidden, descriptions and folders behind links are passed over, and so are
    the folders in `own`, which are what `real_path` makes of them.

    Raises UserError for a path that is missing, a named file of another kind, and a folder or
    pattern with nothing to read.
    """
    found = Found()
    for path in map(str, paths):
        before = len(found.files)
        if is_remote(path):
            _find_remote(path, split, own, found)
        elif glob.has_magic(path) and not os.path.exists(path):
            for match in sorted(glob.glob(path, recursive=True)):
                if os.path.isdir(match):
                    _find_in_folder(LocalTree(match), split, own, found)
                elif kind_of(match):
                    found.files.append(_local_file(match))
                else:
                    found.skipped[_suffix(match)] += 1
        elif os.path.isdir(path):
            _find_in_folder(LocalTree(path), split, own, found)
        elif not os.path.exists(path):
            raise UserError(f"{path}: no such file or folder{within(Path(path))}")
        elif kind_of(path) is None:
            raise UserError(f"{path}: cannot tell how to read it; {KINDS}")
        else:
            found.files.append(_local_file(path))
        kept = [file for file in found.files[before:] if not _is_inside(file.path, own)]
        found.files[before:] = kept
        if not kept:
            what = (
                "no file that can be read matches"
                if glob.has_magic(path)
                else "holds no file to read"
            )
            where = "" if is_remote(path) else within(Path(path))
            raise UserError(f"{path}: {what}{where}; {KINDS}")
    if not found.files:
        raise UserError("no input was given")
    return found


KINDS = (
    "files end in .jsonl, .ndjson, .json (one object a line), .txt or .md, also with .gz or .zst, "
    "or in .parquet or .arrow; MDS folders hold an index.json"
)


def real_path(path: str) -> str:
    """Return a path without links and `..`; that of an object store as it is."""
    return path.rstrip("/") if is_remote(path) else os.path.realpath(path)


def _is_inside(path: str, folders: Sequence[str]) -> bool:
    return bool(folders) and real_path(path).startswith(tuple(f"{f}/" for f in folders))


def is_remote(path: str) -> bool:
    """Return whether a path is of an object store, or of another file system of fsspec's."""
    return "://" in path


def open_file(path: str, position: int = 0) -> BinaryIO:
    """Open a file for reading from a byte on. Raises OSError."""
    if is_remote(path):
        import fsspec

        file = fsspec.open(path, "rb").open()
    else:
        file = open(path, "rb")  # noqa: SIM115
    if position:
        file.seek(position)
    return file


def read_bytes(path: str) -> bytes:
    """Return a file's content. Raises OSError."""
    with open_file(path) as file:
        return file.read()


class LocalTree:
    """A folder of the file system."""

    def __init__(self, root: str) -> None:
        self.root = root

    def walk(self) -> Iterator[tuple[str, list[str], list[str], int]]:
        """Yield (folder, names of folders, names of files, links passed over)."""
        for parent, folders, names in os.walk(self.root):
            links = sum(os.path.islink(os.path.join(parent, name)) for name in folders)
            folders.sort()
            yield parent, folders, names, links

    def file(self, path: str) -> InputFile:
        return _local_file(path)


class RemoteTree:
    """A folder of an object store, listed once."""

    def __init__(self, system: Any, root: str) -> None:
        self.root = root
        self.system = system
        self.entries = system.find(root, detail=True)

    def walk(self) -> Iterator[tuple[str, list[str], list[str], int]]:
        """Yield (folder, names of folders, names of files, links passed over)."""
        folders: dict[str, list[str]] = {}
        for path in self.entries:
            parent, _, name = path.rpartition("/")
            folders.setdefault(parent, []).append(name)
            while len(parent) > len(self.root):
                parent = parent.rpartition("/")[0]
                folders.setdefault(parent, [])
        pruned: list[str] = []
        for parent in sorted(folders):
            if any(parent == top or parent.startswith(top + "/") for top in pruned):
                continue
            below = {
                other[len(parent) + 1 :].split("/")[0]
                for other in folders
                if other.startswith(parent + "/")
            }
            children = sorted(below)
            yield self.system.unstrip_protocol(parent), children, folders[parent], 0
            pruned += [f"{parent}/{name}" for name in below - set(children)]

    def file(self, path: str) -> InputFile:
        # What an index names may be missing; whoever reads it reports it.
        return _remote_file(path, self.entries.get(self.system._strip_protocol(path), {}))


def _find_in_folder(
    tree: LocalTree | RemoteTree, split: str, own: Sequence[str], found: Found
) -> None:
    files: list[InputFile] = []
    top = ""
    split_chosen = not split
    for parent, folders, names, links in tree.walk():
        top = top or f"{parent.rstrip('/')}/"
        found.skipped["linked folder"] += links
        folders[:] = [name for name in folders if real_path(f"{parent}/{name}") not in own]
        for name in [name for name in folders if name.startswith(".")]:
            found.skipped["hidden folder"] += 1
            folders.remove(name)
        if SPLITS_FILE in names:
            _choose_split(parent, folders, split, found)
            split_chosen = True
        if MDS_INDEX in names and (shards := _mds_shards(parent, tree)):
            files += shards
            continue
        wanted = None
        if STATE_FILE in names:
            wanted, split_of_state = _named_by_state(parent)
            split_chosen |= split_of_state == split
        for name in names:
            if name in DESCRIPTIONS or name.startswith("."):
                found.skipped[name if name in DESCRIPTIONS else "hidden"] += 1
            elif kind_of(name) is None or (wanted is not None and name not in wanted):
                found.skipped[_suffix(name)] += 1
            else:
                files.append(tree.file(f"{parent.rstrip('/')}/{name}"))
    if any(file.path == top + README for file in files) and any(f.kind != "text" for f in files):
        found.skipped[README] += 1
        files = [file for file in files if file.path != top + README]
    if files and not split_chosen:
        files = _files_of_split(files, top, split, found)
    found.skipped += Counter()  # drops zeros
    found.files += sorted(files, key=lambda file: file.path.split("/"))


def _files_of_split(files: list[InputFile], top: str, split: str, found: Found) -> list[InputFile]:
    """Return the files that have a split's name in theirs or in a folder's, as on the hub."""
    named = re.compile(rf"(?<![A-Za-z]){re.escape(split)}(?![A-Za-z])")
    chosen = [file for file in files if named.search(file.path.removeprefix(top))]
    if not chosen:
        raise UserError(f"{top}: no file or folder in it is named for the split {split!r}")
    found.skipped["another split"] += len(files) - len(chosen)
    return chosen


def _choose_split(parent: str, folders: list[str], split: str, found: Found) -> None:
    """Leave in `folders` the one split of a DatasetDict that is to be read."""
    path = f"{parent.rstrip('/')}/{SPLITS_FILE}"
    splits = [name for name in _read_json(path).get("splits", []) if name in folders]
    chosen = split or (splits[0] if len(splits) == 1 else "train")
    if chosen not in splits:
        raise UserError(
            f"{parent}: has no split {chosen!r}; name one of {', '.join(splits) or 'none'} by "
            "`split`"
        )
    for name in splits:
        if name != chosen:
            found.skipped[f"split {name}"] += 1
            folders.remove(name)


def _named_by_state(parent: str) -> tuple[set[str] | None, str]:
    """Return the files that a saved data set's state names, if it does, and its split's name."""
    state = _read_json(f"{parent.rstrip('/')}/{STATE_FILE}")
    named, split = state.get("_data_files"), str(state.get("_split") or "")
    if not isinstance(named, list):
        return None, split
    return {entry["filename"] for entry in named if isinstance(entry, dict)}, split


def _mds_shards(parent: str, tree: LocalTree | RemoteTree) -> list[InputFile]:
    """Return the shards that an index names; none if index.json is something else."""
    path = f"{parent.rstrip('/')}/{MDS_INDEX}"
    index = _read_json(path)
    shards = index.get("shards")
    if not isinstance(shards, list) or "version" not in index:
        return []
    files = []
    for entry in shards:
        try:
            packed = entry.get("zip_data") or entry["raw_data"]
            shard = f"{parent.rstrip('/')}/{packed['basename']}"
            columns = tuple(zip(entry["column_names"], entry["column_encodings"], strict=True))
            sizes = entry["column_sizes"]
            compression = entry.get("compression") if entry.get("zip_data") else ""
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: is not an MDS index: {error!r}") from error
        file = tree.file(shard)
        named = tuple(
            (name, encoding if size is None else f"{encoding}={size}")
            for (name, encoding), size in zip(columns, sizes, strict=True)
        )
        files.append(
            InputFile(shard, "mds", compression or "", file.size, file.version, columns=named)
        )
    return files


def _read_json(path: str) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower() or "no suffix"


def _local_file(path: str) -> InputFile:
    kind, compression = kind_of(path) or ("mds", "")
    try:
        status = os.stat(path)
    except OSError:  # a link to nowhere; whoever reads it reports it
        return InputFile(path, kind, compression)
    return InputFile(path, kind, compression, status.st_size, str(status.st_mtime_ns))


def _remote_file(path: str, info: dict[str, Any]) -> InputFile:
    kind, compression = kind_of(path) or ("mds", "")
    tags = (info.get(key) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified"))
    version = next((str(tag) for tag in tags if tag), "")
    return InputFile(path, kind, compression, int(info.get("size") or 0), version)


def _find_remote(path: str, split: str, own: Sequence[str], found: Found) -> None:
    import fsspec

    try:
        system, inside = fsspec.core.url_to_fs(path)
        if glob.has_magic(inside):
            matches = system.glob(inside, detail=True)
            for match in sorted(matches):
                if kind_of(match) and matches[match]["type"] == "file":
                    found.files.append(_remote_file(system.unstrip_protocol(match), matches[match]))
                else:
                    found.skipped[_suffix(match)] += 1
            return
        info = system.info(inside)
        if info["type"] == "directory":
            _find_in_folder(RemoteTree(system, inside), split, own, found)
        elif kind_of(inside) is None:
            raise UserError(f"{path}: cannot tell how to read it; {KINDS}")
        else:
            found.files.append(_remote_file(path, info))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file or folder") from error
    except UserError:
        raise
    except Exception as error:  # each store's library has its own, for wanting credentials say
        raise UserError(f"{path}: cannot be listed: {error}") from error
