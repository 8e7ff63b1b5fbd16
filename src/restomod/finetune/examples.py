"""Tables to tokenised examples, and packed batches of them.

In: the training and the validation `Table`, the configuration, a tokenizer. Out: `Examples`: token
ids with [CLS] and [SEP], labels as numbers, and what the numbers mean. `pack` is the collator of
training and of evaluation: documents one after the other, nothing padded.

Shapes: T tokens, N documents, W words that have a token.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError
from restomod.finetune.config import ColumnsConfig, FinetuneConfig
from restomod.finetune.data import Table
from restomod.finetune.words import Span, first_tokens, join_words, tags_of_spans
from restomod.units import counted
from restomod.vectors.texts import framed

log = logging.getLogger(__name__)

SHOWN = 5


@dataclass
class Example:
    """One text or pair."""

    ids: np.ndarray
    """[length] int64."""
    labels: np.ndarray
    """[1], or [words]: int64 for classes, float32 for regression."""
    firsts: np.ndarray | None = None
    """[words] place of each word's first token in `ids`, -1 for none; None where the label is the
    text's."""


@dataclass
class Examples:
    """What a task trains and is measured on."""

    train: list[Example]
    validation: list[Example]
    names: list[str]
    """Of the classes, in the order of their numbers; none for regression."""
    fallback: int = 0
    """The most frequent tag: what words without a token are taken for."""

    def digest(self) -> str:
        """Return a fingerprint of ids and labels."""
        digest = hashlib.sha256(repr(self.names).encode())
        for example in itertools.chain(self.train, [None], self.validation):
            for part in (example.ids, example.labels) if example else ():
                digest.update(part.tobytes())
            digest.update(b"|")
        return digest.hexdigest()[:16]


def make_examples(
    train: Table, validation: Table, config: FinetuneConfig, tokenizer: Tokenizer, max_tokens: int
) -> Examples:
    """Tokenise both sets; raise UserError for columns or labels that do not fit."""
    if config.task == "tokens":
        return _token_examples(train, validation, config.columns, tokenizer, max_tokens)
    columns = config.columns
    names: list[str] = []
    numbers: dict[Any, int] = {}
    if config.task == "classification":
        names, numbers = _class_numbers(train, train.values(columns.label), columns.label)
    sets = []
    for table in (train, validation):
        values = table.values(columns.label)
        if names:
            labels = _classes(table, values, numbers)
        else:
            labels = _numbers(table, values, columns.label)
        texts = table.texts(columns.text)
        if columns.pair:
            ids = _join_pairs(tokenizer, texts, table.texts(columns.pair), max_tokens, table.name)
        else:
            ids = _singles(tokenizer, texts, max_tokens, table.name)
        sets.append([Example(i, label) for i, label in zip(ids, labels[:, None], strict=True)])
    return Examples(sets[0], sets[1], names)


def truncate_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how much is kept of two lengths in `room`: the longer one is cut until they are even,
    as transformers' `longest_first` does."""
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    kept = (short, room - short)
    return kept if first <= second else (kept[1], kept[0])


def pack(examples: Sequence[Example]) -> dict[str, Any]:
    """Return a batch: input_ids [T], cu_seqlens [N + 1] int32, max_seqlen, labels [N] or [W], and
    for words their `positions` [W] in the batch."""
    lengths = [len(example.ids) for example in examples]
    bounds = [0, *itertools.accumulate(lengths)]
    batch = {
        "input_ids": torch.from_numpy(np.concatenate([example.ids for example in examples])),
        "cu_seqlens": torch.tensor(bounds, dtype=torch.int32),
        "max_seqlen": max(lengths),
    }
    labels, positions = [], []
    for start, example in zip(bounds[:-1], examples, strict=True):
        if example.firsts is None:
            labels.append(example.labels)
        else:
            there = example.firsts >= 0
            labels.append(example.labels[there])
            positions.append(example.firsts[there] + start)
    batch["labels"] = torch.from_numpy(np.concatenate(labels))
    if positions:
        batch["positions"] = torch.from_numpy(np.concatenate(positions))
    return batch


def _singles(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int, where: str
) -> list[np.ndarray]:
    room = max_tokens - 2
    bodies = tokenizer.encode_batch(texts)
    _tell_cuts(where, sum(len(body) > room for body in bodies), len(texts), max_tokens)
    return [framed(tokenizer, body[:room]) for body in bodies]


def _join_pairs(
    tokenizer: Tokenizer, firsts: Sequence[str], seconds: Sequence[str], max_tokens: int, where: str
) -> list[np.ndarray]:
    """Return [CLS] first [SEP] second [SEP] of each pair."""
    start, end = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
    room = max_tokens - 3
    pairs, cut = [], 0
    for a, b in zip(tokenizer.encode_batch(firsts), tokenizer.encode_batch(seconds), strict=True):
        kept_a, kept_b = truncate_pair(len(a), len(b), room)
        cut += kept_a + kept_b < len(a) + len(b)
        parts = [start, a[:kept_a], end, b[:kept_b], end]
        pairs.append(np.concatenate([part.astype(np.int64) for part in parts]))
    _tell_cuts(where, cut, len(pairs), max_tokens)
    return pairs


def warn_of_template(tokenizer: Tokenizer, pairs: bool) -> None:
    """Warn if the tokenizer, as transformers will use it, surrounds texts with other tokens."""
    content = ("a", "b") if pairs else ("a",)
    ids = [tokenizer.backend.encode(text, add_special_tokens=False).ids for text in content]
    ours = [tokenizer.cls_id]
    for part in ids:
        ours += [*part, tokenizer.sep_id]
    theirs = tokenizer.backend.encode(*content).ids
    if ours != theirs:
        log.warning(
            "the tokenizer's own template makes %s of a %s, training [CLS] ... [SEP]: %s; who uses "
            "the model gets the former, so put the same template into tokenizer.json",
            theirs,
            "pair" if pairs else "text",
            ours,
        )


def _token_examples(
    train: Table,
    validation: Table,
    columns: ColumnsConfig,
    tokenizer: Tokenizer,
    max_tokens: int,
) -> Examples:
    parsed = [_words_and_tags(table, columns) for table in (train, validation)]
    seen = [tag for _, _, tags in parsed[0] for tag in tags]
    names, numbers = _class_numbers(train, seen, columns.tags)
    sets = []
    for table, rows in zip((train, validation), parsed, strict=True):
        counts = [len(tags) for _, _, tags in rows]
        labels = _classes(table, [tag for _, _, tags in rows for tag in tags], numbers)
        per_text = np.split(labels, np.cumsum(counts)[:-1])
        encodings = tokenizer.backend.encode_batch(
            [text for text, _, _ in rows], add_special_tokens=False
        )
        examples = []
        lost = cut = 0
        for (_, spans, _), own, encoding in zip(rows, per_text, encodings, strict=True):
            room = max_tokens - 2
            firsts = np.array(first_tokens(spans, encoding.offsets[:room]), np.int64)
            ids = [tokenizer.cls_id, *encoding.ids[:room], tokenizer.sep_id]
            firsts[firsts >= 0] += 1
            examples.append(Example(np.array(ids, np.int64), own, firsts))
            lost += int((firsts < 0).sum())
            cut += len(encoding.ids) > room
        _tell_cuts(table.name, cut, len(rows), max_tokens)
        if lost:
            log.warning("%s: %d of %d words have no token", table.name, lost, sum(counts))
        if lost == sum(counts):
            raise UserError(f"{table.name}: no word has a token")
        sets.append(examples)
    fallback = Counter(np.concatenate([example.labels for example in sets[0]]).tolist())
    # A text none of whose words has a token teaches nothing, and a batch of such has no loss.
    taught = [example for example in sets[0] if (np.asarray(example.firsts) >= 0).any()]
    return Examples(taught, sets[1], names, fallback.most_common(1)[0][0])


def _words_and_tags(
    table: Table, columns: ColumnsConfig
) -> list[tuple[str, list[Span], list[Any]]]:
    """Return (text, spans of words, their tags) of every row."""
    rows: list[tuple[str, list[Span], list[Any]]] = []
    if columns.spans:
        pairs = zip(table.texts(columns.text), table.values(columns.spans), strict=True)
        for n, (text, spans) in enumerate(pairs, 1):
            try:
                rows.append((text, *tags_of_spans(text, spans)))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{table.name}: row {n}: {columns.spans}: {error}") from None
        return rows
    table.require([columns.words, columns.tags])
    pairs = zip(table.values(columns.words), table.values(columns.tags), strict=True)
    for n, (words, tags) in enumerate(pairs, 1):
        if not isinstance(words, list) or not isinstance(tags, list):
            raise UserError(
                f"{table.name}: row {n}: {columns.words} and {columns.tags} must be lists, one tag "
                "a word; for a text with spans of characters, set columns.spans"
            )
        if len(words) != len(tags):
            raise UserError(
                f"{table.name}: row {n}: {len(words)} {columns.words} but {len(tags)} "
                f"{columns.tags}"
            )
        rows.append((*join_words(words), tags))
    return rows


def _class_numbers(
    train: Table, values: Sequence[Any], column: str
) -> tuple[list[str], dict[Any, int]]:
    """Return the names of the classes and the number of each value; raise UserError."""
    names = train.class_names(column)
    if names:
        return names, {value: n for n, name in enumerate(names) for value in (n, name)}
    kinds = {type(value) for value in values}
    if kinds not in ({str}, {int}, {bool}):
        raise UserError(
            f"{train.name}: {column} holds {', '.join(sorted(k.__name__ for k in kinds))}; classes "
            "are texts or whole numbers (numbers to predict are `task: regression`)"
        )
    classes = sorted(set(values))
    if len(classes) < 2:
        raise UserError(
            f"{train.name}: {column} holds {classes[0]!r} only; there is nothing to tell apart"
        )
    return [str(value) for value in classes], {value: n for n, value in enumerate(classes)}


def _classes(table: Table, values: Sequence[Any], numbers: dict[Any, int]) -> np.ndarray:
    """Return the numbers of classes, [values] int64; raise UserError for one that is not known."""
    unknown = Counter(repr(value) for value in values if value not in numbers)
    if unknown:
        listed = ", ".join(f"{value} ({n} times)" for value, n in unknown.most_common(SHOWN))
        known = ", ".join(repr(value) for value in list(numbers)[: 4 * SHOWN])
        raise UserError(
            f"{table.name}: {counted(len(unknown), 'label')} that the training set does not have: "
            f"{listed}; "
            f"it has {known}"
        )
    return np.array([numbers[value] for value in values], np.int64)


def _numbers(table: Table, values: Sequence[Any], column: str) -> np.ndarray:
    """Return numbers to predict, [values] float32; raise UserError."""
    for row, value in enumerate(values, 1):
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise UserError(
                f"{table.name}: row {row}: {column} is {value!r}, a finite number is expected"
            )
    return np.array(values, np.float32)


def _tell_cuts(where: str, cut: int, total: int, max_tokens: int) -> None:
    if cut:
        log.warning("%s: %d of %d texts are cut to %d tokens", where, cut, total, max_tokens)
