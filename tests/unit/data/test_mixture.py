from pathlib import Path

import numpy as np
import pytest
import yaml

from restomod.data.sources import open_sources
from restomod.errors import UserError
from restomod.recipe import load_recipe
from restomod.train.guards import fingerprint


def write(folder, lengths, columns=("tokens",)):
    from streaming import MDSWriter

    kinds = dict.fromkeys(columns, "ndarray:uint16")
    with MDSWriter(out=str(folder), columns=kinds, hashes=["xxh64"]) as writer:
        for length in lengths:
            writer.write(dict.fromkeys(columns, np.full(length, 300, np.uint16)))
    return {"path": str(folder)}


def recipe(tiny, tmp_path, stream, slots, **data):
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(
            {
                "tokenizer": str(Path(tiny.folder) / "tokenizer"),
                "cache_dir": str(tmp_path / "cache"),
                "data": {"streams": {"s": stream}, "lanes": 2, **data},
                "phases": [
                    {
                        "slots": slots,
                        "sequence_length": 128,
                        "row_tokens": 1000,
                        "batch_rows": 2,
                        "mixture": {"s": 1.0},
                    }
                ],
            }
        )
    )
    return load_recipe([tmp_path / "recipe.yaml"])


def test_stream_that_does_not_last_is_refused_before_the_run(tiny, tmp_path):
    stream = {**write(tmp_path / "mds", [100] * 100), "max_epochs": 2}
    open_sources(recipe(tiny, tmp_path, stream, "18_000"))
    with pytest.raises(UserError, match=r"data\.streams\.s: .* times, max_epochs is 2"):
        open_sources(recipe(tiny, tmp_path, stream, "22_000"))


def test_short_documents_that_are_left_out_do_not_last(tiny, tmp_path):
    stream = {**write(tmp_path / "mds", [100, 25, 25, 25, 25] * 20), "max_epochs": 2}
    open_sources(recipe(tiny, tmp_path, stream, "6_000"))
    open_sources(recipe(tiny, tmp_path, stream, "2_000", skip_shorter_than=30))
    with pytest.raises(UserError, match=r"would be read 3\.0\d times"):
        open_sources(recipe(tiny, tmp_path, stream, "6_000", skip_shorter_than=30))


def test_another_column_is_other_data(tiny, tmp_path):
    stream = write(tmp_path / "mds", [100] * 10, ("tokens", "other"))
    first = fingerprint(open_sources(recipe(tiny, tmp_path, stream, "2_000")))
    named = {**stream, "column": "tokens"}
    assert fingerprint(open_sources(recipe(tiny, tmp_path, named, "2_000"))) == first
    named = {**stream, "column": "other"}
    second = fingerprint(open_sources(recipe(tiny, tmp_path, named, "2_000")))
    assert {key for key in first if first[key] != second[key]} == {"data.streams.s.column"}
