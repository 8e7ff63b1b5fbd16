"""The index of evaluation texts that documents are checked against.

In: the paths that `decontaminate.against` names. Out: an `NgramIndex` in the job's folder, written
once; every worker maps it. `pipeline.py` is the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from restomod.errors import UserError
from restomod.prepare.contamination import NgramIndex
from restomod.prepare.documents import EVALUATION
from restomod.prepare.files import InputFile
from restomod.prepare.job import Job
from restomod.prepare.pieces import Piece
from restomod.prepare.readers import read_piece
from restomod.prepare.records import Reading


def build_index(job: Job, sets: dict[str, list[InputFile]]) -> None:
    """Index the texts of every evaluation set unless that is done. Raises UserError for a set
    in which no record has any of the fields."""
    folder = job.stage(EVALUATION)
    if folder.is_dir():
        return
    config = job.recipe.decontaminate
    texts = {path: _texts(path, files, config.text_fields) for path, files in sets.items()}
    NgramIndex.build(texts, config).save(folder)


def _texts(path: str, files: Sequence[InputFile], fields: Sequence[str]) -> Iterator[str]:
    found = False
    problem = ""
    for file in files:
        for name in fields:
            for record in read_piece(Piece(file), Reading((name,))):
                if record.reason:
                    problem = problem or f"{file.path}:{record.number}: {record.detail}"
                else:
                    found = True
                    yield record.text
    if not found:
        raise UserError(
            f"decontaminate.against: {path}: no record has a text in {', '.join(fields)} "
            f"({problem})"
        )
