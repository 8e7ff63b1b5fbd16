"""A byte-level BPE vocabulary out of a corpus.

    python data_prep/train_tokenizer.py --input corpus/code/train.jsonl corpus/prose/train.jsonl \
        --vocab-size 8192 --out data/demo/tokenizer

In: files or folders of documents (see readers.py); what is learned from is sampled evenly over the
inputs, and evenly over the documents of each. Out: a folder that transformers' AutoTokenizer and
`restomod.data.tokenizer.load_tokenizer` load: tokenizer.json, tokenizer_config.json,
special_tokens_map.json, and a manifest.json (see stage.py). Special tokens: [UNK] [CLS] [SEP] [PAD]
[MASK]; users of the exported model get `[CLS] text [SEP]`. The vocabulary has exactly the size that
was asked for: what the corpus cannot fill is filled with [unused0], [unused1], ...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import readers
import stage

from restomod.errors import UserError
from restomod.prepare.sampling import sample_evenly

if TYPE_CHECKING:
    import tokenizers

FORMAT = 1
SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
VOCAB_MULTIPLE = 64
SMALLEST_VOCAB = 320
"""256 bytes and the special tokens, rounded up."""


def check_vocab_size(size: int) -> None:
    """Raise UserError unless `size` is a multiple of 64 that holds every byte."""
    if size < SMALLEST_VOCAB:
        raise UserError(
            f"--vocab-size {size}: too small for 256 bytes and the special tokens; "
            f"use {SMALLEST_VOCAB} or more"
        )
    if size % VOCAB_MULTIPLE:
        below = size // VOCAB_MULTIPLE * VOCAB_MULTIPLE
        raise UserError(
            f"--vocab-size {size}: not a multiple of {VOCAB_MULTIPLE}, which matrix products want; "
            f"use {below} or {below + VOCAB_MULTIPLE}"
        )


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Learn a byte-level BPE vocabulary of exactly `vocab_size` tokens; equal texts in equal order
    give equal vocabularies."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # [MASK] takes the space before it, because words are learned with theirs.
    special = [
        AddedToken(token, lstrip=token == "[MASK]", normalized=False, special=True)
        for token in SPECIAL_TOKENS.values()
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    missing = vocab_size - backend.get_vocab_size()
    backend.add_special_tokens(
        [AddedToken(f"[unused{n}]", normalized=False, special=True) for n in range(missing)]
    )
    assert backend.get_vocab_size() == vocab_size
    cls, sep = (backend.token_to_id(SPECIAL_TOKENS[f"{role}_token"]) for role in ("cls", "sep"))
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return backend


def save_tokenizer(backend: tokenizers.Tokenizer, folder: Path, model_max_length: int) -> None:
    """Write the files that AutoTokenizer reads into `folder`."""
    added = {
        str(number): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for number, token in sorted(backend.get_added_tokens_decoder().items())
    }
    config: dict[str, Any] = {
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        **SPECIAL_TOKENS,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model_max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    backend.save(str(folder / "tokenizer.json"), pretty=True)
    for name, content in (
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", SPECIAL_TOKENS),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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
    inputs = {path: readers.find_files([path]) for path in dict.fromkeys(arguments.input)}
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
        tally = readers.Tally()
        texts = _sample(inputs, arguments, tally)
        readers.require_documents(tally, arguments.input)
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
        f"{manifest.result['sampled_bytes'] / 1e6:.1f} MB in {len(texts)} documents"
    )


def _sample(
    inputs: dict[str, list[Path]], arguments: argparse.Namespace, tally: readers.Tally
) -> list[str]:
    """Return the texts to learn from. Each input gets an equal share of --max-mb; small ones are
    read first, so that what they leave goes to the larger."""
    left = int(arguments.max_mb * 1e6)
    order = sorted(inputs, key=lambda path: (sum(f.stat().st_size for f in inputs[path]), path))
    texts: list[str] = []
    with stage.progress(unit=" documents", desc="read") as bar:
        for number, path in enumerate(order):
            documents = readers.read_documents([path], arguments.text_field, tally)
            counted = _counted((text for text, _ in documents), bar)
            chosen = sample_evenly(counted, left // (len(order) - number))
            left = max(0, left - sum(len(text.encode()) for text in chosen))
            texts.extend(chosen)
    return texts


def _counted(items: Iterable[str], bar: Any) -> Iterator[str]:
    for item in items:
        bar.update(1)
        yield item


if __name__ == "__main__":
    raise SystemExit(main())
