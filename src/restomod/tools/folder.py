"""`restomod inspect FOLDER`: what an MDS data set holds, found from its index and a sample.

In: a folder, local or remote. Out: text or JSON. `commands.py` calls it.
"""

from __future__ import annotations

import json
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from restomod.config import StreamConfig
from restomod.data.shards import ShardedDataset
from restomod.data.tokenizer import Tokenizer, load_tokenizer

SHOWN_CHARACTERS = 300


def describe_folder(path: str, tokenizer_path: str, as_json: bool) -> str:
    """Return the description of the data set in `path`, a folder or a remote.

    With a tokenizer, special tokens are looked for in a sample and a document is shown as text.
    Raises UserError for what is no MDS data set, or damaged.
    """
    tokenizer = load_tokenizer(tokenizer_path) if tokenizer_path else None
    with TemporaryDirectory() as cache:
        dataset = ShardedDataset("inspected", StreamConfig(path=path), cache, tokenizer)
        facts = _facts(dataset, tokenizer)
    if as_json:
        return json.dumps(facts) + "\n"
    return "".join(f"{name.replace('_', ' ')}: {_text(value)}\n" for name, value in facts.items())


def _facts(dataset: ShardedDataset, tokenizer: Tokenizer | None) -> dict[str, Any]:
    index, column, attributes = dataset.index, dataset.column, dataset.attributes
    stored = index.packed or index.raw
    facts: dict[str, Any] = {
        "folder": dataset.path,
        "documents": dataset.documents,
        "shards": len(index.raw),
        "raw_bytes": int(index.raw_bytes.sum()),
        "stored_bytes": sum(shard.bytes for shard in stored),
        "compression": index.compression or "none",
        "hash": stored[0].algorithm or "none recorded",
        "columns": dict(zip(index.names, index.encodings, strict=True)),
        "column_read": column.name,
        "holds": "text" if column.is_text else "token ids",
    }
    readable = column.is_text or column.kind != "bytes" or column.dtype is not None
    places = dataset.sample()
    if not column.is_text and readable:
        ids = [dataset.stored(*place) for place in places]
        facts["type"] = ids[0].dtype.name
        facts["largest_id"] = max(
            (int(document.max()) for document in ids if len(document)), default=0
        )
        if tokenizer:
            facts["stored_special_tokens"] = _special_tokens(ids, tokenizer)
    if readable and not (column.is_text and tokenizer is None):
        facts["tokens"] = attributes.tokens
        facts["tokens_from"] = attributes.source
        lengths = [len(dataset.tokens(*place)) for place in places]
        facts["sampled_lengths"] = {
            name: float(np.quantile(lengths, q))
            for name, q in (("least", 0), ("median", 0.5), ("most", 1))
        }
    facts["tokenizer"] = attributes.tokenizer or "not recorded"
    facts["first_document"] = _first(dataset, tokenizer)
    return facts


def _special_tokens(documents: list[np.ndarray], tokenizer: Tokenizer) -> dict[str, float]:
    """Return which share of documents has special tokens, and where."""
    filled = [document for document in documents if len(document)]
    count = max(1, len(filled))
    inside = sum(bool(np.isin(d[1:-1], tokenizer.special_ids).any()) for d in filled)
    return {
        "first": sum(int(d[0]) in tokenizer.special_ids for d in filled) / count,
        "last": sum(int(d[-1]) in tokenizer.special_ids for d in filled) / count,
        "inside": inside / count,
    }


def _first(dataset: ShardedDataset, tokenizer: Tokenizer | None) -> str:
    place = dataset.sample()[0]
    if dataset.column.is_text:
        return dataset.raw(*place).tobytes().decode(errors="replace")[:SHOWN_CHARACTERS]
    if dataset.column.kind == "bytes" and dataset.column.dtype is None:
        return "bytes; name the tokenizer to read them: --tokenizer PATH"
    ids = dataset.tokens(*place)[:SHOWN_CHARACTERS].tolist()
    return tokenizer.decode(ids)[:SHOWN_CHARACTERS] if tokenizer else f"ids {ids[:20]}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
