"""Texts with a label each, out of a JSON lines or Parquet file.

In: a `ProbeConfig`. Out: `LabelledTexts`. `sources.py` reads them before a run starts, so that
mistakes show early; `eval/probe.py` fits and judges with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from restomod.config import ProbeConfig
from restomod.errors import UserError, within

CHOSEN_SEED = 0
"""Of the shuffle that divides the examples: the same for all recipes, so that runs compare."""


@dataclass(frozen=True)
class LabelledTexts:
    """Examples in a shuffled order: the first `fit` are to learn from, the rest to judge by."""

    texts: list[str]
    labels: list[str]
    fit: int
    tokens: int
    """Of a text that count."""


def read_labelled(config: ProbeConfig) -> LabelledTexts:
    """Read the first examples that have both a text and a label, and divide them in two.

    Raises UserError for a file that is not there or cannot be read, a column that it lacks, fewer
    than two labels among the examples to learn from, and where scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise UserError("needs scikit-learn: pip install 'restomod[judge]'")
    path = Path(config.path)
    if not path.is_file():
        raise UserError(f"{path}: no such file{within(path)}")
    try:
        examples = _first(path, config)
    except (OSError, ValueError) as error:  # pyarrow's errors are either
        raise UserError(f"{path}: cannot be read: {error}") from error
    order = np.random.default_rng(CHOSEN_SEED).permutation(len(examples))
    texts = [examples[n][0] for n in order]
    labels = [examples[n][1] for n in order]
    fit = len(examples) // 2
    if len(set(labels[:fit])) < 2:
        raise UserError(
            f"{path}: {len(examples)} examples with {config.text} and {config.label}, of which the "
            f"half to learn from has {len(set(labels[:fit]))} label(s): two are the least"
        )
    return LabelledTexts(texts, labels, fit, config.tokens)


def _first(path: Path, config: ProbeConfig) -> list[tuple[str, str]]:
    examples: list[tuple[str, str]] = []
    for columns in _batches(path):
        for name in (config.text, config.label):
            if name not in columns:
                raise UserError(f"{path}: has no {name}; there is {', '.join(columns)}")
        pairs = zip(columns[config.text], columns[config.label], strict=True)
        examples += [(str(t), str(label)) for t, label in pairs if t and label is not None]
        if len(examples) >= config.examples:
            break
    return examples[: config.examples]


def _batches(path: Path) -> Iterator[dict[str, list[Any]]]:
    """Yield a file's columns, piece by piece."""
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet

    if path.suffix == ".parquet":
        for batch in pa.parquet.ParquetFile(path).iter_batches(1024):
            yield batch.to_pydict()
    else:
        with pa.input_stream(path) as stream, pa.json.open_json(stream) as reader:
            for batch in reader:
                yield batch.to_pydict()
