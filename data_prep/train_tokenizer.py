"""A byte-level BPE vocabulary out of a corpus.

    python data_prep/train_tokenizer.py --input corpus/code/train.jsonl corpus/prose/train.jsonl \
        --vocab-size 8192 --out data/demo/tokenizer

In: files or folders of documents (see restomod.prepare.files); what is learned from is sampled
evenly over the inputs, and evenly over the documents of each. Out: a folder that transformers'
AutoTokenizer and `restomod.data.tokenizer.load_tokenizer` load: tokenizer.json,
tokenizer_config.json, special_tokens_map.json, and a manifest.json (see stage.py). Special tokens:
[UNK] [CLS] [SEP] [PAD] [MASK]; users of the exported model get `[CLS] text [SEP]`. The vocabulary
has exactly the size that was asked for: what the corpus cannot fill is filled with [unused0],
[unused1], ...
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import stage

from restomod.errors import UserError
from restomod.prepare.bpe import save_tokenizer, train_bpe
from restomod.prepare.config import wrong_vocab_size
from restomod.prepare.files import InputFile, find_files
from restomod.prepare.readers import Tally, read_documents, require_documents
from restomod.prepare.sampling import sample_evenly
from restomod.units import counted

FORMAT = 1


def check_vocab_size(size: int) -> None:
    """Raise UserError unless `size` is a multiple of 64 that holds every byte."""
    wrong = wrong_vocab_size(size)
    if wrong:
        raise UserError(f"--vocab-size {wrong}")


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="train_tokenizer.py", description="Train a byte-level BPE tokenizer on documents."
    )
    parser.add_argument("--input", nargs="+", required=True, help="files or folders of documents")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--vocab-size", type=int, default=8192, help="tokens, a multiple of 64 (default 8192)"
    )
    parser.add_argument(
        "--max-mb",
        type=float,
        default=20.0,
        help="learn from so much text, sampled evenly over the inputs (default 20)",
    )
    parser.add_argument("--text-field", default="text", help="field or column with the text")
    parser.add_argument(
        "--model-max-length",
        type=int,
        default=8192,
        help="longest input the exported tokenizer allows (default 8192)",
    )
    stage.add_output_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train and write the tokenizer; return the exit code."""
    return stage.run(_work, make_parser().parse_args(argv))


def _work(arguments: argparse.Namespace) -> None:
    check_vocab_size(arguments.vocab_size)
    for option in ("max_mb", "model_max_length"):
        if not getattr(arguments, option) > 0:
            raise UserError(f"--{option.replace('_', '-')}: must be above 0")
    inputs = {path: find_files([path]).files for path in dict.fromkeys(arguments.input)}
    manifest = stage.Manifest(
        script="train_tokenizer.py",
        format=FORMAT,
        options={
            name: getattr(arguments, name)
            for name in ("vocab_size", "max_mb", "text_field", "model_max_length")
        },
        inputs=stage.describe_files(file for files in inputs.values() for file in files),
        versions=stage.versions("tokenizers"),
    )
    if stage.is_current(arguments.out, manifest, force=arguments.force, refresh=arguments.refresh):
        return
    with stage.publish(arguments.out, manifest) as folder:
        tally = Tally()
        texts = _sample(inputs, arguments, tally)
        require_documents(tally, arguments.input)
        backend = train_bpe(texts, arguments.vocab_size)
        save_tokenizer(backend, folder, arguments.model_max_length)
        from restomod.data.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(folder)
        unused = sum(token.startswith("[unused") for token in backend.get_vocab())
        manifest.result = {
            **tally.as_dict(),
            "sampled_documents": len(texts),
            "sampled_bytes": sum(len(text.encode()) for text in texts),
            "vocab_size": tokenizer.size,
            "unused_tokens": unused,
            "tokenizer_fingerprint": tokenizer.fingerprint,
        }
        manifest.problems = tally.problems
        stage.report_problems(tally.problems)
    if unused:
        stage.say(
            f"warning: the corpus fills {tokenizer.size - unused} tokens; {unused} are unused"
        )
    stage.say(
        f"{arguments.out}: {tokenizer.size} tokens learned from "
        f"{manifest.result['sampled_bytes'] / 1e6:.1f} MB in {counted(len(texts), 'document')}"
    )


def _sample(
    inputs: dict[str, list[InputFile]], arguments: argparse.Namespace, tally: Tally
) -> list[str]:
    """Return the texts to learn from. Each input gets an equal share of --max-mb; small ones are
    read first, so that what they leave goes to the larger."""
    left = int(arguments.max_mb * 1e6)
    order = sorted(inputs, key=lambda path: (sum(f.size for f in inputs[path]), path))
    texts: list[str] = []
    with stage.progress(unit=" documents", desc="read") as bar:
        for number, path in enumerate(order):
            documents = read_documents([path], arguments.text_field, tally)
            shown = _shown((text for text, _ in documents), bar)
            chosen = sample_evenly(shown, left // (len(order) - number))
            left = max(0, left - sum(len(text.encode()) for text in chosen))
            texts.extend(chosen)
    return texts


def _shown(items: Iterable[str], bar: Any) -> Iterator[str]:
    for item in items:
        bar.update(1)
        yield item


if __name__ == "__main__":
    raise SystemExit(main())
