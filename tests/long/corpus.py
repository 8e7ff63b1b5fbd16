"""Made-up data sets that are larger than the `tiny` fixture's, for the soaks and the long chaos."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_stream(
    folder: Path, documents: int, ids: np.ndarray, compression: str | None = None
) -> np.ndarray:
    """Write documents of some of `ids`, one to 200 tokens long, 18 on average; return their
    lengths, [documents] int64."""
    from streaming import MDSWriter

    generator = np.random.default_rng(len(folder.name))
    lengths = np.clip(generator.lognormal(2.7, 0.7, documents), 1, 200).astype(np.int64)
    columns = {"tokens": "ndarray:uint16"}
    with MDSWriter(
        out=str(folder),
        columns=columns,
        hashes=["xxh64"],
        size_limit=1 << 20,
        compression=compression,
    ) as out:
        for length in lengths.tolist():
            drawn = generator.integers(len(ids), size=length)
            out.write({"tokens": ids[drawn].astype(np.uint16)})
    return lengths
