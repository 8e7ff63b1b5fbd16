"""The schema of a preparation: a dataclass for each section of its YAML.

In: YAML files and `key=value` overrides. Out: a `Preparation` whose every key has been checked, or
a UserError that says what is wrong and where. Imports nothing heavy, so that a mistake is answered
at once. `restomod.prepare.pipeline` and its stages read it.
"""

from __future__ import annotations

import codecs
import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.prepare import contamination, near_duplicates
from restomod.prepare.contamination import ContaminationConfig
from restomod.prepare.minhash import NearDuplicateConfig
from restomod.prepare.normalise import NormaliseConfig
from restomod.prepare.quality import QualityConfig
from restomod.strict import load_strict

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RESERVED_NAMES = ("tokenizer",)
COMPRESSION = re.compile(r"none|zstd(:([1-9]|1\d|2[0-2]))?")
UNITS = {"": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}
VOCAB_MULTIPLE = 64
MOST_WORKERS = 1024
LARGEST_VOCAB = 1 << 22
SMALLEST_VOCAB = 320
"""256 bytes and the special tokens, rounded up."""


@dataclass
class SourceConfig:
    """Where documents come from, and what the data card says about that."""

    paths: list[str] = field(default_factory=list)
    """Files, folders or patterns with `*`, local or of an object store (`s3://...`)."""
    domain: str = ""
    """What it counts as in tables; the source's name by default."""
    text_fields: list[str] = field(default_factory=lambda: ["text"])
    """Fields (columns) that make up a document, in this order and with an empty line between.
    `a.b` is field b of the object a. A null is left out where another field holds a text."""
    split: str = ""
    """Split to read of a Hugging Face DatasetDict; empty takes its only one, or `train`."""
    text_documents: str = field(default="file", metadata={"choices": ("file", "line")})
    """Whether a .txt or .md file is one document, or each of its lines is."""
    encoding: str = "utf-8"
    """Of JSON lines and text files; one in which a line end is the byte 10."""
    share: float = 1.0
    """Weight in the sample that a tokenizer is trained on."""
    licence: str = ""
    """Name or SPDX identifier, for the data card."""
    url: str = ""
    """Where the source can be found, for the data card."""
    description: str = ""
    """For the data card."""


@dataclass
class ReadingConfig:
    """What counts as a record that cannot be read, and how many of those are too many."""

    undecodable: str = field(default="drop", metadata={"choices": ("drop", "replace")})
    """Documents with bytes that are not of the encoding: drop, or replace the bytes by U+FFFD."""
    max_record_mb: float = 64.0
    """Records above this many MB (10^6 bytes) are dropped without being held in memory."""
    max_rejected_share: float = 0.01
    """Share of all records that may be unreadable; above it the job stops once all are read."""
    max_broken_files_share: float = 0.01
    """The same for files that cannot be opened, or that break off."""


@dataclass
class DeduplicateConfig:
    """Documents of which only the first is kept, in the order of the recipe's sources."""

    exact: bool = True
    """Whether documents with the same normalised text are dropped."""
    near: NearDuplicateConfig = field(default_factory=NearDuplicateConfig)
    """Documents that share most of their words."""


@dataclass
class HeldoutConfig:
    """Documents that are never trained on."""

    share: float = 0.005
    """Of every source's documents, chosen by the hash of their text."""


@dataclass
class TokenizerConfig:
    """The tokenizer: one that exists, or what to train."""

    path: str = ""
    """A tokenizer.json or a folder with one; empty trains a byte-level BPE on the sources."""
    vocab_size: int = 32_768
    """Tokens of a trained one, a multiple of 64."""
    sample_mb: float = 500.0
    """MB of text to train on, drawn by the sources' shares. It is held in memory."""
    model_max_length: int = 8192
    """Longest input that a trained one allows its users."""
    reference: str = ""
    """Another tokenizer, to compare the fertility with; empty compares with none."""


@dataclass
class ShardsConfig:
    """The MDS files."""

    size: str = "64mb"
    """Largest size of a shard before compression, below 4gb."""
    compression: str = "zstd"
    """zstd, zstd:LEVEL (1 to 22) or none."""


@dataclass
class ExecutionConfig:
    """Who does the work. Nothing here changes the output."""

    workers: int = 0
    """Processes on this machine; 0 takes one per core."""
    ray: str = ""
    """Address of a Ray cluster (`auto`, `HOST:PORT` or `ray://HOST:PORT`) that does the work
    instead; empty stays on this machine."""
    attempts: int = 3
    """How often a task is begun whose worker dies."""


@dataclass
class Preparation:
    """A whole preparation: from raw text to shards, a tokenizer and a data card."""

    name: str = "data"
    """Heading of the data card."""
    description: str = ""
    """For the data card."""
    out: str = ""
    """Folder to write, local or of an object store."""
    work_dir: str = ""
    """Folder for what is in between, about the size of the text; every worker must see it. By
    default `.NAME.work` beside a local `out`. Removed when the job is done."""
    unit_size: str = "32mb"
    """Input that one task reads; larger files are cut where their format allows."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """By name; each becomes OUT/NAME/train and OUT/NAME/heldout."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    """Bad input."""
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    """Changes of the text."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """Rules that drop documents."""
    decontaminate: ContaminationConfig = field(default_factory=ContaminationConfig)
    """Evaluation texts that must not be trained on."""
    deduplicate: DeduplicateConfig = field(default_factory=DeduplicateConfig)
    """Repeated documents."""
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)
    """What is kept for evaluation."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """The vocabulary."""
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    """The files written."""
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    """Who does the work."""

    @property
    def work_folder(self) -> Path:
        """Where intermediate files lie."""
        if self.work_dir:
            return Path(self.work_dir)
        out = Path(self.out)
        return out.parent / f".{out.name}.work"


def load_preparation(paths: list[str | Path], overrides: list[str]) -> Preparation:
    """Read a preparation from YAML files (later ones win) and `key=value` overrides.

    Raises UserError listing every unknown key and wrong type, or else all that cannot work.
    """
    if not paths:
        raise UserError("a recipe is needed: restomod prepare RECIPE.yaml [key=value ...]")
    return load_strict(paths, overrides, Preparation, _impossible)


def identity(recipe: Preparation) -> dict[str, Any]:
    """Return the keys that change the output, in plain form."""
    plain = dataclasses.asdict(recipe)
    for key in ("execution", "work_dir", "out"):
        del plain[key]
    for key in ("max_rejected_share", "max_broken_files_share"):
        del plain["reading"][key]
    return plain


def parse_size(text: str, key: str) -> int:
    """Return the bytes that "64mb", "100kb" or "1000000" stand for; below 4 GiB, which is as far as
    a shard's offsets reach. Raises UserError, naming `key`."""
    match = re.fullmatch(r"(\d+)\s*(kb|mb|gb|)", text.strip().lower())
    size = int(match[1]) * UNITS[match[2]] if match else 0
    if not 1024 <= size < 1 << 32:
        raise UserError(
            f"{key} {text}: give a size from 1kb to below 4gb, such as 64mb or 67108864"
        )
    return size


def wrong_vocab_size(size: int) -> str:
    """Return why no vocabulary of this size can be trained; empty if it can."""
    if size < SMALLEST_VOCAB:
        return (
            f"{size}: too small for 256 bytes and the special tokens; use {SMALLEST_VOCAB} or more"
        )
    if size > LARGEST_VOCAB:
        return f"{size}: at most {LARGEST_VOCAB:,} tokens are trained"
    if size % VOCAB_MULTIPLE:
        below = size // VOCAB_MULTIPLE * VOCAB_MULTIPLE
        return (
            f"{size}: not a multiple of {VOCAB_MULTIPLE}, which matrix products want; "
            f"use {below} or {below + VOCAB_MULTIPLE}"
        )
    return ""


def _impossible(recipe: Preparation) -> list[tuple[str, str]]:
    """Return (key, reason) for every value or combination that cannot work."""
    bad: list[tuple[str, str]] = []

    def require(holds: bool, key: str, reason: str) -> None:
        if not holds:
            bad.append((key, reason))

    require(bool(recipe.out), "out", "is missing: the folder to write")
    require(
        "://" not in recipe.out or bool(recipe.work_dir),
        "out",
        "is remote, which needs a work_dir: a folder for what is in between",
    )
    require("://" not in recipe.work_dir, "work_dir", "must be a folder of a file system")
    require(bool(recipe.sources), "sources", "is missing: name at least one")
    for name, source in recipe.sources.items():
        _check_source(f"sources.{name}", name, source, require)
    require(
        not recipe.sources or any(source.share > 0 for source in recipe.sources.values()),
        "sources",
        "none has a share above 0",
    )
    reading = recipe.reading
    require(reading.max_record_mb > 0, "reading.max_record_mb", "must be above 0")
    for key in ("max_rejected_share", "max_broken_files_share"):
        require(0 <= getattr(reading, key) <= 1, f"reading.{key}", "must lie in [0, 1]")
    bad += [(f"quality.{key}", reason) for key, reason in recipe.quality.impossible()]
    bad += [
        (f"decontaminate.{key}", reason)
        for key, reason in contamination.impossible(recipe.decontaminate)
    ]
    bad += [
        (f"deduplicate.near.{key}", reason)
        for key, reason in near_duplicates.impossible(recipe.deduplicate.near)
    ]
    require(0 <= recipe.heldout.share < 1, "heldout.share", "must lie in [0, 1)")
    tokenizer = recipe.tokenizer
    if not tokenizer.path:
        wrong = wrong_vocab_size(tokenizer.vocab_size)
        require(not wrong, "tokenizer.vocab_size", wrong)
    require(tokenizer.sample_mb > 0, "tokenizer.sample_mb", "must be above 0")
    require(tokenizer.model_max_length > 0, "tokenizer.model_max_length", "must be above 0")
    for key, text in (("unit_size", recipe.unit_size), ("shards.size", recipe.shards.size)):
        try:
            parse_size(text, "size")
        except UserError as error:
            bad.append((key, str(error)))
    require(
        bool(COMPRESSION.fullmatch(recipe.shards.compression)),
        "shards.compression",
        f"{recipe.shards.compression}: use zstd, zstd:1 to :22, or none",
    )
    require(
        0 <= recipe.execution.workers <= MOST_WORKERS,
        "execution.workers",
        f"must not be negative, and at most {MOST_WORKERS}",
    )
    require(recipe.execution.attempts > 0, "execution.attempts", "must be above 0")
    return bad


def _check_source(key: str, name: str, source: SourceConfig, require: Any) -> None:
    require(
        bool(NAME.fullmatch(name)) and name not in RESERVED_NAMES,
        key,
        "use letters, digits, `.`, `_` and `-` in a name, a letter or digit first; and not "
        + ", ".join(RESERVED_NAMES),
    )
    require(bool(source.paths), f"{key}.paths", "is missing: files or folders to read")
    require(bool(source.text_fields), f"{key}.text_fields", "name at least one field")
    require(0 <= source.share < math.inf, f"{key}.share", "must be 0 or more")
    try:
        readable = "\n".encode(source.encoding) == b"\n"
        codecs.lookup(source.encoding)
    except (LookupError, UnicodeError):
        readable = False
    require(
        readable,
        f"{key}.encoding",
        f"{source.encoding}: is no encoding that Python knows and that writes a line end as one "
        "byte 10",
    )
