"""The tokenizer of a job: copied if there is one, else trained on a sample of the documents.

In: the documents that are trained on, without duplicates. Out: the folder `tokenizer` of the job's
output, once, and its fertility by domain beside that of a reference. The sample is drawn by the
sources' shares, not by their sizes; of a large source only as many units are read as it takes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from restomod.data.tokenizer import load_tokenizer
from restomod.errors import UserError
from restomod.prepare.atomic import read_json, replacing, write_json
from restomod.prepare.fertility import measure
from restomod.prepare.job import Job
from restomod.prepare.sampling import sample_by_shares, sample_evenly
from restomod.prepare.tokenise import TOKENIZER, is_held_out, job_tokenizer, kept_documents

COPIED = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "spiece")
"""How the names of a tokenizer's files begin."""
READ_PER_SAMPLED = 4
"""Bytes of text that are read for each that is sampled, where a source has so many."""
FERTILITY_BYTES = 4_000_000
"""Sample of each domain."""

UnitTexts = tuple[int, int, int]
"""A unit, its documents, its bytes of text."""


def make_tokenizer(
    job: Job, units: Mapping[str, Sequence[UnitTexts]], parts: int
) -> dict[str, Any]:
    """Put the tokenizer into the job's output unless it is there; return what the manifest says of
    it. `units` are those of each source."""
    config = job.recipe.tokenizer
    folder = job.output / TOKENIZER
    with _all_cores():
        if not folder.is_dir():
            if config.path:
                _copy(Path(config.path), folder, job)
            else:
                _train(job, folder, units, parts)
        described = job.stage(TOKENIZER) / "described.json"
        if not described.is_file():
            write_json(described, _describe(job, units, parts))
    return read_json(described)


def _copy(path: Path, folder: Path, job: Job) -> None:
    wanted = load_tokenizer(path)
    with replacing(folder, job.stage(TOKENIZER) / "partial") as partial:
        partial.mkdir()
        if path.is_dir():
            for file in sorted(path.iterdir()):
                if file.is_file() and (file.name.startswith(COPIED) or file.suffix == ".model"):
                    shutil.copyfile(file, partial / file.name)
        else:
            beside = path.parent.iterdir() if path.name == "tokenizer.json" else [path]
            for file in (f for f in beside if f == path or f.name.startswith(COPIED[:2])):
                name = "tokenizer.json" if file == path else file.name
                shutil.copyfile(file, partial / name)
        copied = load_tokenizer(partial)
        if copied.fingerprint != wanted.fingerprint:
            raise UserError(
                f"tokenizer.path: {path}: does not survive a copy of its files; save it as a "
                "folder with tokenizer.json"
            )


def _train(job: Job, folder: Path, units: Mapping[str, Sequence[UnitTexts]], parts: int) -> None:
    from restomod.prepare.bpe import save_tokenizer, train_bpe

    config = job.recipe.tokenizer
    budget = int(config.sample_mb * 1e6)
    shares = {name: job.recipe.sources[name].share for name in units if units[name]}
    sources = {name: _texts(job, units[name], parts, budget, False) for name in shares}
    sampled = sample_by_shares(sources, shares, budget)
    texts = [text for name in sorted(sampled) for text in sampled[name]]
    if not texts:
        raise UserError(
            "tokenizer: no document is left to train it on; all are held out (heldout.share is "
            f"{job.recipe.heldout.share:g}), or of sources whose share is 0"
        )
    backend = train_bpe(texts, config.vocab_size)
    sizes = {name: sum(len(text.encode()) for text in of) for name, of in sampled.items()}
    with replacing(folder, job.stage(TOKENIZER) / "partial") as partial:
        partial.mkdir()
        save_tokenizer(backend, partial, config.model_max_length)
        write_json(job.stage(TOKENIZER) / "sample.json", sizes)


def _describe(job: Job, units: Mapping[str, Sequence[UnitTexts]], parts: int) -> dict[str, Any]:
    """Return path, fingerprint, size, what it was trained on, and fertility by domain."""
    config = job.recipe.tokenizer
    own = job_tokenizer(job)
    tokenizers = {"own": own}
    if config.reference:
        tokenizers["reference"] = load_tokenizer(config.reference)
    by_domain: dict[str, list[str]] = {}
    for name in units:
        texts: list[str] = []
        for held_out in (True, False):  # what it was trained on only where nothing is held out
            if not texts:
                found = _texts(job, units[name], parts, FERTILITY_BYTES, held_out)
                texts = sample_evenly(found, FERTILITY_BYTES)
        domain = job.recipe.sources[name].domain or name
        by_domain.setdefault(domain, []).extend(texts)
    measured = measure(tokenizers, by_domain)
    sample = job.stage(TOKENIZER) / "sample.json"
    unused = sum(token.startswith("[unused") for token in own.backend.get_vocab())
    return {
        "path": config.path or TOKENIZER,
        "reference": config.reference,
        "fingerprint": own.fingerprint,
        "size": own.size,
        "vocab_size": own.vocab_size,
        "unused_tokens": unused,
        "sampled_bytes": read_json(sample) if sample.is_file() else {},
        "fertility": {
            domain: {name: fertility.as_dict() for name, fertility in of_domain.items()}
            for domain, of_domain in measured.items()
        },
    }


def _texts(
    job: Job, units: Sequence[UnitTexts], parts: int, budget_bytes: int, held_out: bool
) -> Iterator[str]:
    """Yield the texts of a split, out of as many units as hold several times the budget without
    duplicates: every n-th, and those between only where these hold less than was expected."""
    wanted = READ_PER_SAMPLED * budget_bytes
    stride = max(1, sum(size for _, _, size in units) // max(1, wanted))
    share = job.recipe.heldout.share
    read = 0
    for start in range(stride):
        for unit, documents, _ in units[start::stride]:
            for batch in kept_documents(job, unit, documents, parts):
                for document in batch:
                    read += len(document.text.encode())
                    if is_held_out(document, share) == held_out:
                        yield document.text
        if 2 * read >= wanted:  # units differ in size
            return


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let the tokenizers library use every core; here nothing else runs."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
