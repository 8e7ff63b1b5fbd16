"""Labelled data: files, `datasets` folders or the hub, to a training and a validation set.

In: a `DataConfig`. Out: two `datasets.Dataset`s, and values of their columns that are checked:
messages name the file or split, the column and the row. `run.py` and `examples.py` call this.
"""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from restomod.errors import UserError, within
from restomod.finetune.config import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

SUFFIX = r"\.(jsonl|json|csv|tsv|parquet)(\.gz|\.zst)?"
PART = r"(-\d+(-of-\d+)?)?"
DEFAULT_VALIDATION = "validation"
SPLIT_SEED = 0
"""Of the share that is held back as a validation set: the same for all seeds."""


class Table:
    """The rows of a split, with columns that are there and hold what they should."""

    def __init__(self, rows: Dataset, name: str) -> None:
        self.rows = rows
        self.name = name
        """What messages call it."""

    def __len__(self) -> int:
        return len(self.rows)

    def require(self, columns: Iterable[str]) -> None:
        """Raise UserError if one of the columns is missing."""
        there = self.rows.column_names
        if missing := [name for name in columns if name not in there]:
            raise UserError(
                f"{self.name}: has no column {', '.join(missing)}; it has {', '.join(there)}. "
                "Name yours under `columns:`"
            )

    def texts(self, column: str) -> list[str]:
        """Return the texts of a column, or of a template of several; raise UserError."""
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(column)]
        except ValueError as error:
            raise UserError(
                f"columns: {column!r}: is no template such as '{{title}}: {{body}}': {error}"
            ) from None
        names = [name for name in fields if name is not None]
        if not names:
            return self._strings(column)
        values = {name: self._strings(name) for name in names}
        return [
            column.format(**dict(zip(names, row, strict=True)))
            for row in zip(*(values[name] for name in names), strict=True)
        ]

    def values(self, column: str) -> list[Any]:
        """Return a column, none of it missing; raise UserError."""
        self.require([column])
        values = list(self.rows[column])
        for row, value in enumerate(values):
            if value is None:
                raise UserError(f"{self.name}: row {row + 1}: {column} is empty")
        return values

    def class_names(self, column: str) -> list[str]:
        """Return the names that a column of `datasets.ClassLabel`s gives its numbers, or none."""
        feature: Any = self.rows.features.get(column)
        feature = getattr(feature, "feature", feature)
        return list(getattr(feature, "names", None) or [])

    def _strings(self, column: str) -> list[str]:
        values = self.values(column)
        for row, value in enumerate(values):
            if not isinstance(value, str | int | float):
                raise UserError(
                    f"{self.name}: row {row + 1}: {column} is a {type(value).__name__}, "
                    "text is expected"
                )
        return [str(value) for value in values]


def load_tables(config: DataConfig) -> tuple[Table, Table]:
    """Return the training and the validation set; raise UserError."""
    path = _local(config)
    if path is not None and path.is_file():
        train = Table(_read_files([path]), str(path))
    else:
        train = _split(config, path, config.train)
    if config.validation:
        file = Path(config.validation)
        if re.search(SUFFIX + "$", file.name):
            validation = Table(_read_files([_existing(file)]), str(file))
        elif path is not None and path.is_file():
            raise UserError(
                f"data.validation: {config.validation}: {path} is a file and has no splits; "
                "name another file"
            )
        else:
            validation = _split(config, path, config.validation)
    elif (path is None or not path.is_file()) and DEFAULT_VALIDATION in _names_of_splits(
        config, path
    ):
        validation = _split(config, path, DEFAULT_VALIDATION)
    else:
        train, validation = _hold_back(train, config.validation_share)
    for table in (train, validation):
        if not len(table):
            raise UserError(f"{table.name}: holds no examples")
    return train, validation


def _local(config: DataConfig) -> Path | None:
    """Return the path on this machine, or None for what may be on the hub."""
    path = Path(config.path)
    if path.exists():
        if config.subset and path.is_dir():
            if not (path / config.subset).is_dir():
                there = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir())) or "none"
                raise UserError(f"{path}: has no folder {config.subset}; folders there: {there}")
            return path / config.subset
        return path
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", config.path) and not re.search(
        SUFFIX + "$", config.path
    ):
        return None
    raise UserError(f"{path}: no such file or folder{within(Path(path))}")


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    return file


def _saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _names_of_splits(config: DataConfig, path: Path | None) -> list[str]:
    if path is None:
        return list(_ask_hub(config, "get_dataset_split_names"))
    if (path / "dataset_dict.json").is_file():
        return sorted(p.name for p in path.iterdir() if p.is_dir())
    return [] if _saved(path) else sorted(_files_by_split(path))


def _split(config: DataConfig, path: Path | None, split: str) -> Table:
    """Read a split of a folder or of a data set on the hub."""
    datasets = _datasets()
    if path is None:
        rows = _ask_hub(config, "load_dataset", split=split)
        return Table(rows, f"{config.path} {config.subset} ({split})")
    if _saved(path):
        loaded = datasets.load_from_disk(str(path))
        if isinstance(loaded, datasets.Dataset):
            return Table(loaded, str(path))
        if split not in loaded:
            raise UserError(f"{path}: has no split {split}; there is {', '.join(loaded)}")
        return Table(loaded[split], f"{path} ({split})")
    files = _files_by_split(path)
    if split not in files:
        there = ", ".join(sorted(files)) or "no .jsonl, .json, .csv, .tsv or .parquet file"
        raise UserError(f"{path}: has no split {split}; there is {there}")
    return Table(_read_files(files[split]), f"{path} ({split})")


def _files_by_split(path: Path) -> dict[str, list[Path]]:
    """Return a folder's files, also those one folder down, by the split that they are named for."""
    found: dict[str, list[Path]] = {}
    for file in sorted([*path.glob("*"), *path.glob("*/*")]):
        match = re.fullmatch(rf"([\w.]*?\w){PART}{SUFFIX}", file.name)
        if match and file.is_file():
            found.setdefault(match.group(1), []).append(file)
    return found


def _read_files(files: Sequence[Path]) -> Dataset:
    """Read JSON lines, CSV or Parquet into memory; raise UserError."""
    import pyarrow as pa

    tables = []
    for file in files:
        if not re.search(SUFFIX + "$", file.name):
            raise UserError(
                f"{file}: is of no kind that is read: .jsonl, .json (lines), .csv, .tsv, .parquet, "
                "also .gz and .zst"
            )
        try:
            with pa.input_stream(str(file), compression="detect") as stream:
                tables.append(_parse(stream, file))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file}: cannot be read: {error}") from None
    try:
        return _datasets().Dataset(pa.concat_tables(tables, promote_options="permissive"))
    except pa.ArrowException as error:
        raise UserError(f"{files[0].parent}: files with different columns: {error}") from None


def _parse(stream: Any, file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    if ".parquet" in file.suffixes:
        return pa.parquet.read_table(pa.BufferReader(stream.read()))
    content = stream.read()
    if not content.strip():
        raise UserError(f"{file}: holds no examples")
    size, source = max(len(content), 1), pa.BufferReader(content)  # types of all rows at once
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        if suffix in file.suffixes:
            parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            return pa.csv.read_csv(source, pa.csv.ReadOptions(block_size=size), parse)
    return pa.json.read_json(source, pa.json.ReadOptions(block_size=size))


def _hold_back(train: Table, share: float) -> tuple[Table, Table]:
    """Part a share of the examples off, at least one, and leave at least one."""
    if len(train) < 2:
        raise UserError(
            f"{train.name}: {len(train)} example cannot be parted into a training and a "
            "validation set; name one with data.validation"
        )
    count = min(max(1, round(share * len(train))), len(train) - 1)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
    held, rest = np.sort(order[:count]), np.sort(order[count:])
    return (
        Table(train.rows.select(rest), train.name),
        Table(train.rows.select(held), f"{train.name}, {count} examples held back"),
    )


def _ask_hub(config: DataConfig, function: str, **keys: Any) -> Any:
    """Call a function of `datasets` on a data set of the hub; raise UserError."""
    name = f"{config.path} {config.subset}".strip()
    log.info("%s: no such folder; asks the hub", name)
    require("huggingface_hub").utils.logging.set_verbosity_error()  # it tells every retry
    try:
        return getattr(_datasets(), function)(config.path, config.subset or None, **keys)
    except Exception as error:  # whatever a connection or a builder raises
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{name}: no such folder here, and the hub does not give it ({lines[0][:200]}). "
            "Without a network, put its files in a folder (train.jsonl, validation.parquet, ...) "
            "and name that as data.path"
        ) from None


def _datasets() -> Any:
    return require("datasets")


def require(name: str) -> Any:
    """Import what the extra `judge` brings; raise UserError if it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{error.name or name} is not installed, which fine-tuning needs: "
            "pip install 'restomod[judge]'"
        ) from None
