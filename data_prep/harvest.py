"""The demo's corpus: text that every Python environment already holds.

    python data_prep/harvest.py --out data/demo/corpus

In: the standard library and the installed distributions. Out: train.jsonl and heldout.jsonl in
`OUT/{code,prose,science}/`, one document a line as `{"text", "origin": {"distribution", "file",
"name"}, "domain"}`, and a manifest.json (see stage.py).

    code      Python files, without their longer docstrings
    prose     technical prose: docstrings of 200 characters or more, package descriptions,
              .rst, .md and .txt files
    science   the same out of scientific packages

It is technical text; do not call it web English. Files are taken in the order of a hash of their
name until a domain has its share of bytes, so the sample depends on what is installed, not on the
file system, and a smaller cap gives a part of what a larger one gives. Exact duplicates are dropped
over all domains. Whole distributions are held out, about 6.5 % of every domain; a document that
shares half of its lines or more with the other side is dropped (`near_duplicate`).
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import os
import sysconfig
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stage

from restomod.errors import UserError
from restomod.harvest import python_text
from restomod.harvest.heldout import (
    HELDOUT_SHARE,
    MAX_HELDOUT_SHARE,
    choose_heldout,
    drop_near_duplicates,
    line_hashes,
)
from restomod.harvest.installed import (
    STDLIB,
    FileTask,
    Source,
    find_sources,
    hash_key,
    plan_files,
)
from restomod.units import counted

FORMAT = 1
DOMAINS = ("code", "prose", "science")
SPLITS = ("train", "heldout")
CHUNK_BYTES = 400_000
"""Source text handed to a worker at once."""


@dataclass
class Document:
    """One document, and what duplicates of it are found by."""

    domain: str
    source: str
    file: str
    name: str
    text: str
    digest: bytes
    lines: array[int]
    """crc32 of its longer lines, each once."""
    bytes: int
    """UTF-8 bytes."""
    altered: bool
    """Whether lone surrogates were replaced."""


@dataclass
class Harvest:
    """Documents in order, and what was left out."""

    documents: list[Document] = field(default_factory=list)
    skipped_files: Counter[str] = field(default_factory=Counter)
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    altered: Counter[str] = field(default_factory=Counter)
    domain_bytes: Counter[str] = field(default_factory=Counter)
    time_cap_hit: bool = False


def extract_chunk(tasks: Sequence[FileTask]) -> list[tuple[list[Document], str | None]]:
    """Return (documents, reason why there are none) of every file."""
    collecting = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles, and collecting them doubles the time
    try:
        return [_extract(task) for task in tasks]
    finally:
        if collecting:
            gc.enable()


def _extract(task: FileTask) -> tuple[list[Document], str | None]:
    try:
        data = task.path.read_bytes()
    except OSError:
        return [], "unreadable"
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    if task.path.suffix != ".py":
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return [], "not_utf8"
        reason = python_text.reason_to_skip_prose(text)
        return ([] if reason else [_document(task, task.prose_domain, "", text)]), reason
    is_topics = task.source == STDLIB and task.file == "pydoc_data/topics.py"
    reason = None if is_topics else python_text.reason_to_skip(data)
    if reason:
        return [], reason
    if not task.wants_code and not python_text.may_hold_docstrings(data):
        return [], "no_long_docstring"
    try:
        if is_topics:
            topics = python_text.documentation_topics(data)
            return [_document(task, task.prose_domain, name, text) for name, text in topics], None
        split = python_text.split_python(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [], "does_not_parse"
    documents = [_document(task, task.prose_domain, n, text) for n, text in split.docstrings]
    if task.wants_code:
        documents.insert(0, _document(task, "code", "", split.code))
    return documents, None


def _document(task: FileTask, domain: str, name: str, text: str) -> Document:
    try:
        size, altered = len(text.encode()), False
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        size, altered = len(text.encode()), True
    digest, lines = text_digest(text), line_hashes(text)
    return Document(domain, task.source, task.file, name, text, digest, lines, size, altered)


def text_digest(text: str) -> bytes:
    """Return a hash of the text, equal for texts that differ in white space only."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def harvest(
    sources: Sequence[Source],
    caps_mb: dict[str, float],
    max_seconds: float,
    workers: int,
) -> Harvest:
    """Extract documents until every domain has its cap, exact duplicates left out."""
    deadline = time.monotonic() + max_seconds
    result = Harvest()
    caps = {domain: mb * 1e6 for domain, mb in caps_mb.items()}
    seen: set[bytes] = set()

    def add(document: Document) -> None:
        if result.domain_bytes[document.domain] >= caps[document.domain]:
            return
        result.read += 1
        if document.altered:
            result.altered["lone_surrogates_replaced"] += 1
        if len(document.text) < python_text.MIN_CHARACTERS:
            result.dropped["too_short"] += 1
        elif document.digest in seen:
            result.dropped["exact_duplicate"] += 1
        else:
            seen.add(document.digest)
            result.documents.append(document)
            result.domain_bytes[document.domain] += document.bytes

    for source in sorted(sources, key=lambda source: hash_key(source.name, "METADATA")):
        if source.description:
            text = source.description + "\n"
            task = FileTask(source.name, source.prose_domain, "METADATA", source.root, len(text))
            add(_document(task, source.prose_domain, "description", text))

    def is_wanted(task: FileTask) -> bool:
        wanted = [task.prose_domain, "code"] if task.wants_code else [task.prose_domain]
        return any(result.domain_bytes[domain] < caps[domain] for domain in wanted)

    tasks = plan_files(sources, caps["code"], result.skipped_files)
    with stage.progress(total=sum(caps.values()) / 1e6, unit="MB", desc="harvest") as bar:
        shown = 0.0
        for task, (documents, reason) in _extracted(tasks, is_wanted, workers):
            if time.monotonic() > deadline:
                result.time_cap_hit = True
                break
            if not is_wanted(task):
                continue
            if reason is not None:
                result.skipped_files[reason] += 1
            for document in documents:
                add(document)
            total = sum(result.domain_bytes.values()) / 1e6
            bar.update(total - shown)
            shown = total
    return result


def _extracted(
    tasks: Sequence[FileTask], is_wanted: Any, workers: int
) -> Iterator[tuple[FileTask, tuple[list[Document], str | None]]]:
    """Yield every wanted file's documents in the order of `tasks`.

    Files are left out only when the domains they feed are full already, and a full domain stays
    full: so what is taken does not depend on the number of workers or on their speed.
    """
    chunks = _chunks(tasks, is_wanted)
    if workers <= 1:
        for chunk in chunks:
            yield from zip(chunk, extract_chunk(chunk), strict=True)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        pending: deque[tuple[list[FileTask], Any]] = deque()
        try:
            for chunk in chunks:
                pending.append((chunk, pool.submit(extract_chunk, chunk)))
                if len(pending) > 2 * workers:
                    done, future = pending.popleft()
                    yield from zip(done, future.result(), strict=True)
            for done, future in pending:
                yield from zip(done, future.result(), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _chunks(tasks: Sequence[FileTask], is_wanted: Any) -> Iterator[list[FileTask]]:
    chunk: list[FileTask] = []
    size = 0
    for task in tasks:
        if not is_wanted(task):
            continue
        chunk.append(task)
        size += task.bytes
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="harvest.py",
        description="Harvest a corpus out of the running Python's library and packages.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--code-mb", type=float, default=16.0, help="at most so much (default 16)")
    parser.add_argument("--prose-mb", type=float, default=9.0, help="at most so much (default 9)")
    parser.add_argument(
        "--science-mb", type=float, default=10.0, help="at most so much (default 10)"
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=120.0,
        help="stop reading after so long; the result then depends on speed, and says so",
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="processes (default 0: one per core, at most 8)"
    )
    parser.add_argument(
        "--site-packages",
        action="append",
        metavar="DIR",
        help="harvest the packages of this folder instead of the running Python's (repeatable)",
    )
    parser.add_argument("--no-stdlib", action="store_true", help="leave the standard library out")
    stage.add_output_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the corpus; return the exit code."""
    return stage.run(_work, make_parser().parse_args(argv))


def _work(arguments: argparse.Namespace) -> None:
    caps_mb = {domain: getattr(arguments, f"{domain}_mb") for domain in DOMAINS}
    for domain, mb in caps_mb.items():
        if not mb > 0:
            raise UserError(f"--{domain}-mb {mb}: must be above 0")
    for folder in arguments.site_packages or ():
        if not Path(folder).is_dir():
            raise UserError(f"--site-packages {folder}: no such folder")
    stdlib = None if arguments.no_stdlib else Path(sysconfig.get_path("stdlib"))
    sources = find_sources(arguments.site_packages, stdlib)
    manifest = stage.Manifest(
        script="harvest.py",
        format=FORMAT,
        options={"caps_mb": caps_mb, "heldout_share": HELDOUT_SHARE},
        inputs=[{"name": source.name, "version": source.version} for source in sources],
        versions=stage.versions(),
    )
    if stage.is_current(arguments.out, manifest, force=arguments.force, refresh=arguments.refresh):
        return
    with stage.publish(arguments.out, manifest) as folder:
        workers = arguments.workers or min(os.cpu_count() or 1, 8)
        result = harvest(sources, caps_mb, arguments.max_seconds, workers)
        if not result.documents:
            raise UserError("no text was found in the standard library and the packages")
        manifest.result = write_corpus(folder, result)
        if result.time_cap_hit:
            stage.say(f"warning: stopped after --max-seconds {arguments.max_seconds:g}")
    for domain, of_split in manifest.result["domains"].items():
        train, heldout = (of_split[split] for split in SPLITS)
        stage.say(
            f"{arguments.out}/{domain}: {counted(train['documents'], 'document')}, "
            f"{train['text_bytes'] / 1e6:.1f} MB to train on; {heldout['documents']}, "
            f"{heldout['text_bytes'] / 1e6:.2f} MB held out "
            f"({counted(len(heldout['distributions']), 'distribution')})"
        )


def write_corpus(folder: Path, result: Harvest) -> dict[str, Any]:
    """Split the documents and write them; return the counts for the manifest."""
    sizes: dict[str, dict[str, int]] = {}
    for document in result.documents:
        of_domain = sizes.setdefault(document.source, {})
        of_domain[document.domain] = of_domain.get(document.domain, 0) + document.bytes
    held_out = choose_heldout(sizes)
    train = [d for d in result.documents if d.source not in held_out]
    heldout = [d for d in result.documents if d.source in held_out]
    heldout, surplus = _trim(heldout, result.domain_bytes)
    if surplus:
        result.dropped["heldout_surplus"] += surplus
    train, heldout, near = drop_near_duplicates(train, heldout)
    for split, number in near.items():
        result.dropped[f"near_duplicate_{split}"] += number
    domains: dict[str, Any] = {domain: {} for domain in DOMAINS}
    for split, documents in zip(SPLITS, (train, heldout), strict=True):
        for domain in DOMAINS:
            chosen = [d for d in documents if d.domain == domain]
            domains[domain][split] = _write(folder / domain / f"{split}.jsonl", chosen)
    return {
        "documents_read": result.read,
        "documents_kept": len(train) + len(heldout),
        "dropped": dict(sorted(result.dropped.items())),
        "altered": dict(sorted(result.altered.items())),
        "skipped_files": dict(sorted(result.skipped_files.items())),
        "time_cap_hit": result.time_cap_hit,
        "heldout_distributions": sorted(held_out),
        "domains": domains,
    }


def _trim(heldout: list[Document], domain_bytes: Counter[str]) -> tuple[list[Document], int]:
    """Drop held-out documents above their share of a domain; return the others, and how many."""
    kept, taken = [], Counter[str]()
    for document in heldout:
        limit = MAX_HELDOUT_SHARE * domain_bytes[document.domain]
        if taken[document.domain] and taken[document.domain] + document.bytes > limit:
            continue
        taken[document.domain] += document.bytes
        kept.append(document)
    return kept, len(heldout) - len(kept)


def _write(path: Path, documents: list[Document]) -> dict[str, Any]:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for document in sorted(documents, key=lambda d: hash_key(d.source, d.file, d.name)):
            record = {
                "text": document.text,
                "origin": {
                    "distribution": document.source,
                    "file": document.file,
                    "name": document.name,
                },
                "domain": document.domain,
            }
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    return {
        "documents": len(documents),
        "text_bytes": sum(document.bytes for document in documents),
        "distributions": sorted({document.source for document in documents}),
    }


if __name__ == "__main__":
    raise SystemExit(main())
