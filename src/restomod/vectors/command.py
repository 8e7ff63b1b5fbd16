"""The command line of `restomod embed`. Imports nothing heavy before it runs."""

from __future__ import annotations

import argparse

from restomod.units import positive


def add_arguments(embed: argparse.ArgumentParser) -> None:
    """Add what `restomod embed` takes."""
    embed.add_argument("model", metavar="RUN|CHECKPOINT|FOLDER", help="a run's newest is taken")
    embed.add_argument("input", nargs="+", metavar="INPUT", help="files, folders, patterns, s3://")
    embed.add_argument("--out", default="vectors", help="folder to write; vectors by default")
    embed.add_argument("--text-column", default="text", metavar="NAME", help="text by default")
    embed.add_argument("--id-column", default="", metavar="NAME", help="instead of row numbers")
    embed.add_argument("--keep", default="", metavar="NAME,...", help="other columns to copy")
    embed.add_argument("--pooling", default="mean", choices=("mean", "cls"))
    embed.add_argument("--normalize", action="store_true", help="scale vectors to length 1")
    embed.add_argument("--dtype", default="float32", choices=("float32", "float16"))
    embed.add_argument("--max-tokens", type=int, default=0, help="of a text; the model's limit")
    embed.add_argument("--batch-tokens", type=positive, default=16_384, help="16384 by default")
    embed.add_argument("--part-rows", type=positive, default=16_384, help="16384 by default")
    embed.add_argument(
        "--limit", type=positive, default=0, metavar="ROWS", help="rows of the input"
    )
    embed.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="0/4", help="this process's share of parts"
    )


def run(arguments: argparse.Namespace) -> str:
    """Embed; return what was done, as text."""
    from restomod.model.cpu import keep_freed_memory
    from restomod.vectors.bulk import Options, Sharing, embed_files

    keep_freed_memory()
    options = Options(
        text_column=arguments.text_column,
        id_column=arguments.id_column,
        keep=tuple(name for name in arguments.keep.split(",") if name),
        pooling=arguments.pooling,
        normalize=arguments.normalize,
        dtype=arguments.dtype,
        max_tokens=arguments.max_tokens,
        limit=arguments.limit,
        part_rows=arguments.part_rows,
    )
    return embed_files(
        arguments.model,
        arguments.input,
        arguments.out,
        options,
        batch_tokens=arguments.batch_tokens,
        sharing=Sharing(*arguments.shard),
    )


def _shard(text: str) -> tuple[int, int]:
    mine, slash, processes = text.partition("/")
    if not (slash and mine.isdigit() and processes.isdigit() and int(mine) < int(processes)):
        raise argparse.ArgumentTypeError("write 0/4, 1/4, ... for four processes")
    return int(mine), int(processes)
