"""Tasks in folders of the user's: retrieval as BEIR lays it out, labelled texts.

In: a folder. Out: `RetrievalItems` or `LabelledItems`; a UserError that says which file is missing
or which line is not as it should be.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.eval.items import LabelledItems, RetrievalItems
from restomod.harvest.installed import hash_key

TEST_SHARE = 3
"""One text in so many is for the test, of folders without a split."""
LAYOUT = "expected corpus.jsonl, queries.jsonl and qrels/{}.tsv, as BEIR lays them out"


def read_beir(folder: Path, split: str) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """Return documents and queries by id (title and text of a document joined), and the grades of
    each judged query, {query: {document: grade}}; queries that nobody judged are left out."""
    missing = [
        name
        for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv")
        if not (folder / name).is_file()
    ]
    if missing:
        raise UserError(f"{folder}: {missing[0]} is missing; {LAYOUT.format(split)}")
    documents = {
        str(record["_id"]): f"{record.get('title') or ''} {record['text']}".strip()
        for record in _records(folder / "corpus.jsonl", "_id", "text")
    }
    texts = {
        str(record["_id"]): record["text"]
        for record in _records(folder / "queries.jsonl", "_id", "text")
    }
    grades: dict[str, dict[str, int]] = {}
    path = folder / "qrels" / f"{split}.tsv"
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for n, row in enumerate(csv.reader(file, delimiter="\t"), 1):
            if n == 1 and row and not row[-1].lstrip("-").isdigit():
                continue  # the header
            if len(row) != 3 or not row[2].lstrip("-").isdigit():
                raise UserError(f"{path}:{n}: is not query, document and a whole grade, by tabs")
            query, document, grade = row[0], row[1], int(row[2])
            if query not in texts or document not in documents:
                what = f"query {query}" if query not in texts else f"document {document}"
                raise UserError(f"{path}:{n}: there is no {what}")
            if grade > 0:
                grades.setdefault(query, {})[document] = grade
    if not grades:
        raise UserError(f"{path}: no query has a right answer")
    return documents, {query: texts[query] for query in grades}, grades


def retrieval_items(folder: Path, split: str) -> RetrievalItems:
    """Return a BEIR folder as items."""
    documents, queries, grades = read_beir(folder, split)
    number = {name: n for n, name in enumerate(documents)}
    return RetrievalItems(
        list(queries.values()),
        list(documents.values()),
        [{number[name]: grade for name, grade in grades[query].items()} for query in queries],
        about={"folder": str(folder), "split": split},
    )


def labelled_items(folder: Path, most: int, labels: Mapping[str, str]) -> LabelledItems:
    """Return a folder of labelled texts as items, `most` of each part in the order of a hash;
    `labels` are those of folders whose names are none."""
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    if train.is_file() and test.is_file():
        parts = [
            [
                (str(n), r["text"], str(r["label"]))
                for n, r in enumerate(_records(path, "text", "label"))
            ]
            for path in (train, test)
        ]
    else:
        files = sorted(folder.glob("*/*.txt"))
        if not files:
            raise UserError(
                f"{folder}: expected train.jsonl and test.jsonl of {{text, label}}, or folders "
                "named for labels with a .txt file a text"
            )
        parts = [[], []]
        for path in files:
            name = path.relative_to(folder).as_posix()
            is_test = hash_key("test", name)[0] % TEST_SHARE == 0
            text = path.read_text(encoding="utf-8", errors="replace")
            label = labels.get(path.parent.name, path.parent.name)
            parts[is_test].append((name, text, label))
    train_part, test_part = (
        sorted(part, key=lambda row: hash_key(row[0], row[1]))[:most] for part in parts
    )
    if len({label for _, _, label in train_part}) < 2 or not test_part:
        raise UserError(f"{folder}: needs texts of two labels to learn from, and some to be judged")
    return LabelledItems(
        [text for _, text, _ in train_part],
        [label for _, _, label in train_part],
        [text for _, text, _ in test_part],
        [label for _, _, label in test_part],
        about={"folder": str(folder)},
    )


def _records(path: Path, *keys: str) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for n, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                missing = [key for key in keys if key not in record]
            except (ValueError, TypeError):
                raise UserError(f"{path}:{n}: is no JSON object in UTF-8") from None
            if missing:
                raise UserError(f"{path}:{n}: has no {missing[0]}")
            yield record
