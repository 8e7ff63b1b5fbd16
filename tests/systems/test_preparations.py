"""Every shipped preparation runs on made files in the places and forms that its head names."""

import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from restomod import cli
from restomod.prepare.config import SourceConfig, load_preparation
from tests.conftest import Tiny, documents

SHIPPED = sorted(
    path
    for path in (Path(__file__).parents[2] / "yamls" / "data").glob("*.yaml")
    if path.stem != "demo"  # which `make demo`'s corpus goes through
)
DOCUMENTS = 40


def write(source: str, config: SourceConfig) -> None:
    """Write a file as the source's data set has them, and one beside it that is not to be read."""
    path = Path(config.paths[0])
    folder = path.parent if "*" in path.name else path
    folder.mkdir(parents=True, exist_ok=True)
    field = config.text_fields[0]
    texts = [f"{source} {n} {text} " * 9 for n, text in enumerate(documents(source, DOCUMENTS))]
    rows = [{field: text, "id": str(n)} for n, text in enumerate(texts)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if "starcoder" in str(path) or "fineweb-2" in str(path):
        pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000.parquet")
    elif "c4" in path.parts:
        (folder / "c4-train.00000-of-01024.json.gz").write_bytes(gzip.compress(lines))
        (folder / "c4-validation.00000-of-00008.json.gz").write_bytes(gzip.compress(lines))
    elif source in ("dclm", "eng"):
        (folder / "0000.json.zst").write_bytes(zstandard.compress(lines))
    elif path.name == "*.jsonl.zst":
        (folder / "mine.jsonl.zst").write_bytes(zstandard.compress(lines))
    else:
        (folder / "0000.json.gz").write_bytes(gzip.compress(lines))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_preparation_reads_what_its_head_fetches(path, tiny: Tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    preparation = load_preparation([path], [])
    for name, source in preparation.sources.items():
        write(name, source)
    tokenizer = f"tokenizer.path={tiny.folder / 'tokenizer'}"
    words = [tokenizer, "heldout.share=0.2", "execution.workers=1", "deduplicate.exact=false"]
    words.append("deduplicate.near.enabled=false")
    monkeypatch.setattr(sys, "argv", ["restomod", "prepare", str(path), *words])
    assert cli.main() == 0, capsys.readouterr().err
    manifest = json.loads((Path(preparation.out) / "manifest.json").read_text())
    told = {source["name"]: source for source in manifest["sources"]}
    for name in preparation.sources:
        for split in ("train", "heldout"):
            assert (Path(preparation.out) / name / split / "index.json").exists(), (name, split)
        assert 0.7 * DOCUMENTS <= told[name]["documents"] <= DOCUMENTS, name
