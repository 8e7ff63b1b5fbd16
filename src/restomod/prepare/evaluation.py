"""The index of evaluation texts that documents are checked against.

In: the paths that `decontaminate.against` names. Out: an `NgramIndex` in the job's folder, written
once; every worker maps it. `pipeline.py` is the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from restomod.errors import UserError
from restomod.prepare.contamination import NgramIndex
from restomod.prepare.documents import EVALUATION
from restomod.prepare.files import InputFile
from restomod.prepare.job import Job
from restomod.prepare.manifest import FILE_REASONS
from restomod.prepare.pieces import Piece
from restomod.prepare.readers import read_piece
from restomod.prepare.records import Reading

logger = logging.getLogger(__name__)
DAMAGE = ("broken_json", "not_an_object")
"""Reasons for which a record is lost; a field may be missing."""


def build_index(job: Job, sets: dict[str, list[InputFile]]) -> None:
    """Index the texts of every evaluation set unless that is done. Raises UserError for a set
    in which no record has any of the fields, and for a file that cannot be read to its end."""
    folder = job.stage(EVALUATION)
    if folder.is_dir():
        return
    config = job.recipe.decontaminate
    texts = {path: _texts(path, files, config.text_fields) for path, files in sets.items()}
    NgramIndex.build(texts, config).save(folder)


def _texts(path: str, files: Sequence[InputFile], fields: Sequence[str]) -> Iterator[str]:
    found = damaged = 0
    problem = damage = ""
    for file in files:
        for name in fields:
            for record in read_piece(Piece(file), Reading((name,))):
                if not record.reason:
                    found += 1
                    yield record.text
                    continue
                said = f"{file.path}:{record.number}: {record.reason} {record.detail}"
                problem = problem or said
                if record.reason in FILE_REASONS:
                    raise UserError(
                        f"decontaminate.against: {file.path}: cannot be read to its end "
                        f"({record.detail}); documents that repeat the rest would be trained on"
                    )
                if record.reason in DAMAGE and name == fields[0]:
                    damaged += 1
                    damage = damage or said
    if not found:
        raise UserError(
            f"decontaminate.against: {path}: no record has a text in {', '.join(fields)} "
            f"({problem})"
        )
    if damaged:
        logger.warning(
            "decontaminate.against: %s: %d records cannot be read, and what repeats them is not "
            "found; the first: %s",
            path,
            damaged,
            damage,
        )
