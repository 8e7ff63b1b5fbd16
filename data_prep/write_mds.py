"""Tokenised MDS shards out of documents.

    python data_prep/write_mds.py --tokenizer data/demo/tokenizer --input corpus.jsonl --out mds
    python data_prep/write_mds.py --tokenizer data/demo/tokenizer \
        --dataset mds/train=corpus/train.jsonl --dataset mds/heldout=corpus/heldout.jsonl

In: files or folders of documents (see readers.py) and a tokenizer. Out, for every data set, a
folder that Streaming reads: shards of whole documents in the order of the input, in one column
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
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import readers
import stage

from restomod.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from restomod.data.tokenizer import Tokenizer

FORMAT = 1
COLUMN = "tokens"
BATCH_CHARACTERS = 4_000_000
BATCH_DOCUMENTS = 4096
HASHES = ("sha1", "xxh64")
UNITS = {"": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}


@dataclass
class TokenTally:
    """What was written."""

    counts: np.ndarray
    """[vocab_size] int64, occurrences of every id."""
    documents: int = 0
    tokens: int = 0
    longest: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    """Documents by the largest power of two that is not above their length."""

    def add(self, ids: np.ndarray) -> None:
        """Count one document."""
        self.documents += 1
        self.tokens += len(ids)
        self.longest = max(self.longest, len(ids))
        self.lengths[1 << (len(ids).bit_length() - 1)] += 1


def parse_size(text: str) -> int:
    """Return the bytes that "64mb", "100kb" or "1000000" stand for; below 4 GiB, which is as far as
    a shard's offsets reach."""
    match = re.fullmatch(r"(\d+)\s*(kb|mb|gb|)", text.strip().lower())
    size = int(match[1]) * UNITS[match[2]] if match else 0
    if not 1024 <= size < 1 << 32:
        raise UserError(
            f"--size-limit {text}: give a size from 1kb to below 4gb, such as 64mb or 67108864"
        )
    return size


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


def write_shards(
    folder: Path,
    documents: Iterable[tuple[str, str]],
    tokenizer: Tokenizer,
    tally: readers.Tally,
    *,
    size_limit: int,
    compression: str,
) -> TokenTally:
    """Write the shards and index.json into the empty `folder`, and count what is in them.

    Documents without a token, which MDS cannot hold, are dropped and counted in `tally`.
    """
    import numpy as np
    from streaming import MDSWriter

    class Writer(MDSWriter):
        """Leaves no empty shard before a document that is larger than the limit."""

        def flush_shard(self) -> None:
            if self.new_samples:
                super().flush_shard()

    written = TokenTally(np.zeros(tokenizer.vocab_size, np.int64))
    writer = Writer(
        columns={COLUMN: f"ndarray:{tokenizer.dtype.name}"},
        out=str(folder),
        compression=None if compression == "none" else compression,
        hashes=list(HASHES),
        size_limit=size_limit,
    )
    try:
        for batch in batches(documents):
            encoded = tokenizer.encode_batch([text for text, _ in batch])
            written.counts += np.bincount(np.concatenate(encoded), minlength=tokenizer.vocab_size)
            for (_, origin), ids in zip(batch, encoded, strict=True):
                if len(ids):
                    written.add(ids)
                    writer.write({COLUMN: ids})
                else:
                    tally.kept -= 1
                    tally.read -= 1
                    tally.drop("no_tokens", origin)
        writer.finish()
    except BaseException:
        writer.cancel_future_jobs()
        raise
    return written


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
    size_limit = parse_size(arguments.size_limit)
    if not re.fullmatch(r"none|zstd(:([1-9]|1\d|2[0-2]))?", arguments.compression):
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
            inputs=stage.describe_files(readers.find_files(paths)),
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
    import numpy as np

    with stage.publish(out, manifest) as folder:
        tally = readers.Tally()
        documents = readers.read_documents(paths, arguments.text_field, tally)
        written = write_shards(
            folder,
            stage.progress(documents, unit=" documents", desc=out.name),
            tokenizer,
            tally,
            size_limit=manifest.options["size_limit"],
            compression=arguments.compression,
        )
        readers.require_documents(tally, paths)
        attributes = describe(written, tokenizer, tally, paths)
        (folder / "restomod.json").write_text(
            json.dumps(attributes, indent=1) + "\n", encoding="utf-8"
        )
        np.save(folder / "token_counts.npy", written.counts)
        manifest.result = {
            **tally.as_dict(),
            "tokens": written.tokens,
            "tokenizer_fingerprint": tokenizer.fingerprint,
        }
        manifest.problems = tally.problems
    stage.report_problems(tally.problems)
    dropped = f", {sum(tally.dropped.values())} dropped" if tally.dropped else ""
    stage.say(
        f"{out}: {written.documents} documents{dropped}, {written.tokens} tokens, "
        f"{tally.text_bytes / max(written.tokens, 1):.2f} bytes a token"
    )


def describe(
    written: TokenTally, tokenizer: Tokenizer, tally: readers.Tally, paths: Sequence[str]
) -> dict[str, Any]:
    """Return the content of restomod.json; the same wherever the same data was prepared."""
    return {
        "format": FORMAT,
        "column": COLUMN,
        "dtype": tokenizer.dtype.name,
        "special_tokens": False,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "tokenizer_size": tokenizer.size,
        "vocab_size": tokenizer.vocab_size,
        "documents": written.documents,
        "tokens": written.tokens,
        "mean_tokens_per_document": written.tokens / max(written.documents, 1),
        "longest_document": written.longest,
        "length_histogram": {str(length): n for length, n in sorted(written.lengths.items())},
        "text_bytes": tally.text_bytes,
        "dropped": dict(sorted(tally.dropped.items())),
        "altered": dict(sorted(tally.altered.items())),
        "sources": [Path(path).name for path in paths],
    }


if __name__ == "__main__":
    raise SystemExit(main())
