"""A byte-level BPE vocabulary out of texts, in the files that transformers' AutoTokenizer reads.

In: texts, and the size that the vocabulary is to have. Out: a folder with tokenizer.json,
tokenizer_config.json and special_tokens_map.json. Special tokens: [UNK] [CLS] [SEP] [PAD] [MASK];
users of the exported model get `[CLS] text [SEP]`. `vocabulary.py` and data_prep/train_tokenizer.py
call this.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}


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
