"""Tokenised MDS shards out of documents.

    python data_prep/write_mds.py --tokenizer data/demo/tokenizer --input corpus.jsonl --out mds
    python data_prep/write_mds.py --tokenizer data/demo/tokenizer \
        --dataset mds/train=corpus/train.jsonl --dataset mds/heldout=corpus/heldout.jsonl

In: files or folders of documents (see restomod.prepare.files) and a tokenizer. Out, for every data
set, a folder that Streaming reads: shards of whole documents in the order of the input, in a column
`tokens` (`ndarray:uint16`, or `ndarray:uint32` above 65,536 ids), never truncated and without
special tokens, which the loader adds. `--dataset` may be repeated: importing Streaming takes
seconds, so one call for several data sets is quicker. Equal inputs give equal bytes.

Beside index.json lie

    restomod.json      what the loader checks and needs: the tokenizer's fingerprint, documents,
                       tokens, mean length, a histogram of lengths (key "64": 64 to 127 tokens)
    token_counts.npy   how often each id occurs, [vocab_size] int64
    manifest.json      how the data set was made (see stage.py)
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import stage

from restomod.errors import UserError
from restomod.prepare.config import COMPRESSION, parse_size
from restomod.prepare.files import find_files
from restomod.prepare.readers import Tally, read_documents, require_documents
from restomod.prepare.shards import describe, write_description, write_shards
from restomod.units import counted

if TYPE_CHECKING:
    import numpy as np

    from restomod.data.tokenizer import Tokenizer

FORMAT = 1
BATCH_CHARACTERS = 4_000_000
BATCH_DOCUMENTS = 4096


def parse_datasets(arguments: argparse.Namespace) -> list[tuple[Path, list[str]]]:
    """Return (output folder, inputs) of every data set asked for."""
    datasets = []
    for text in arguments.dataset or ():
        out, _, inputs = text.partition("=")
        paths = [path for path in inputs.split(",") if path]
        if not out or not paths:
            raise UserError(f"--dataset {text}: write it as OUT=IN or OUT=IN,IN")
        datasets.append((Path(out), paths))
    if (arguments.out is None) != (not arguments.input):
        raise UserError("--input and --out go together; for several data sets use --dataset")
    if arguments.out is not None:
        datasets.append((arguments.out, arguments.input))
    if not datasets:
        raise UserError("nothing to do: give --input and --out, or --dataset OUT=IN")
    outs = [out.absolute() for out, _ in datasets]
    repeated = [str(out) for out, n in Counter(outs).items() if n > 1]
    if repeated:
        raise UserError(f"{repeated[0]}: is the output of two data sets")
    nested = [str(out) for out in outs if any(other in out.parents for other in outs)]
    if nested:
        raise UserError(f"{nested[0]}: lies inside the output of another data set")
    return datasets


def batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Yield (text, origin) in lists that are large enough to be tokenised on every core."""
    batch: list[tuple[str, str]] = []
    characters = 0
    for text, origin in documents:
        batch.append((text, origin))
        characters += len(text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def tokenised(
    documents: Iterable[tuple[str, str]], tokenizer: Tokenizer, tally: Tally
) -> Iterator[np.ndarray]:
    """Yield the ids of every document. Those without a token, which MDS cannot hold, are dropped
    and counted in `tally`."""
    for batch in batches(documents):
        encoded = tokenizer.encode_batch([text for text, _ in batch])
        for (_, origin), ids in zip(batch, encoded, strict=True):
            if len(ids):
                yield ids
            else:
                tally.kept -= 1
                tally.read -= 1
                tally.drop("no_tokens", origin)


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="write_mds.py", description="Tokenise documents into MDS shards."
    )
    parser.add_argument(
        "--tokenizer", required=True, help="tokenizer.json, or a folder that AutoTokenizer loads"
    )
    parser.add_argument("--input", nargs="+", help="files or folders of documents")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument(
        "--dataset",
        action="append",
        metavar="OUT=IN[,IN]",
        help="one data set more: its folder and its inputs (repeatable)",
    )
    parser.add_argument("--text-field", default="text", help="field or column with the text")
    parser.add_argument(
        "--size-limit", default="64mb", help="size of a shard before compression (default 64mb)"
    )
    parser.add_argument(
        "--compression",
        default="zstd",
        metavar="NAME",
        help="zstd, zstd:LEVEL or none (default zstd)",
    )
    stage.add_output_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data sets; return the exit code."""
    return stage.run(_work, make_parser().parse_args(argv))


def _work(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    datasets = parse_datasets(arguments)
    size_limit = parse_size(arguments.size_limit, "--size-limit")
    if not COMPRESSION.fullmatch(arguments.compression):
        raise UserError(f"--compression {arguments.compression}: use zstd, zstd:1 to :22, or none")
    from restomod.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(arguments.tokenizer)
    planned = []
    for out, paths in datasets:
        manifest = stage.Manifest(
            script="write_mds.py",
            format=FORMAT,
            options={
                "tokenizer_fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
                "text_field": arguments.text_field,
                "size_limit": size_limit,
                "compression": arguments.compression,
            },
            inputs=stage.describe_files(find_files(paths).files),
            versions=stage.versions("tokenizers", "mosaicml-streaming", "zstandard"),
        )
        if not stage.is_current(out, manifest, force=arguments.force, refresh=arguments.refresh):
            planned.append((out, paths, manifest))
    for out, paths, manifest in planned:
        _write_dataset(out, paths, manifest, tokenizer, arguments)


def _write_dataset(
    out: Path,
    paths: list[str],
    manifest: stage.Manifest,
    tokenizer: Tokenizer,
    arguments: argparse.Namespace,
) -> None:
    with stage.publish(out, manifest) as folder:
        tally = Tally()
        documents = read_documents(paths, arguments.text_field, tally)
        shown = stage.progress(documents, unit=" documents", desc=out.name)
        written = write_shards(
            folder,
            tokenised(shown, tokenizer, tally),
            tokenizer,
            size_limit=manifest.options["size_limit"],
            compression=arguments.compression,
        )
        require_documents(tally, paths)
        attributes = describe(
            written,
            tokenizer,
            text_bytes=tally.text_bytes,
            dropped=tally.dropped,
            altered=tally.altered,
            sources=[Path(path).name for path in paths],
        )
        write_description(folder, attributes, written.counts)
        manifest.result = {
            **tally.as_dict(),
            "tokens": written.tokens,
            "tokenizer_fingerprint": tokenizer.fingerprint,
        }
        manifest.problems = tally.problems
    stage.report_problems(tally.problems)
    dropped = f", {sum(tally.dropped.values())} dropped" if tally.dropped else ""
    stage.say(
        f"{out}: {counted(written.documents, 'document')}{dropped}, {written.tokens} tokens, "
        f"{tally.text_bytes / max(written.tokens, 1):.2f} bytes a token"
    )


if __name__ == "__main__":
    raise SystemExit(main())
