"""A tokenizer by path: its backend, the ids that play a role in training, and a fingerprint.

In: a tokenizer.json, or a folder as transformers' AutoTokenizer loads it. Out: a `Tokenizer`. The
data lanes take the special ids from it, the model its size; `prepare/` tokenises with it and stores
its fingerprint beside the data, so that no data set is read with another tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from restomod.errors import UserError, within

if TYPE_CHECKING:
    import tokenizers

VOCAB_MULTIPLE = 64
"""The model's vocabulary is rounded up to this, which is what fast matrix products want."""

ROLES = ("cls", "sep", "pad", "mask", "unk")
CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json")
CONFIG_KEYS = {
    "cls": ("cls_token", "bos_token"),
    "sep": ("sep_token", "eos_token"),
    "pad": ("pad_token",),
    "mask": ("mask_token",),
    "unk": ("unk_token",),
}
SPELLINGS = {
    "cls": ("[CLS]", "<cls>", "<|cls|>", "<s>", "[BOS]", "<bos>", "<|startoftext|>"),
    "sep": ("[SEP]", "<sep>", "<|sep|>", "</s>", "[EOS]", "<eos>", "<|endoftext|>"),
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
    "unk": ("[UNK]", "<unk>", "<|unk|>"),
}
UNUSED = re.compile(r"[\[<]\|?unused_?\d+\|?[\]>]", re.IGNORECASE)
VOCABULARY = re.compile(r"vocab|merges|tokenizer|\.model$|\.tiktoken$")
"""Names of files that transformers can make a tokenizer of."""
ID_PARTS = ("model", "added_tokens", "normalizer", "pre_tokenizer")
"""The parts of tokenizer.json that decide the ids of a text without special tokens."""


def token_dtype(size: int) -> np.dtype[Any]:
    """Return the type that shards hold ids below `size` in: uint16, or uint32 above 65,536."""
    return np.dtype(np.uint16 if size <= 1 << 16 else np.uint32)


@dataclass(frozen=True, eq=False)
class WordParts:
    """How tokens make up words: token b begins a word after token a if b is in `starts`, or if
    `first[b]` differs from `last[a]` (a letter after a bracket, say)."""

    starts: np.ndarray
    """[vocab_size] bool."""
    first: np.ndarray
    """[vocab_size] uint8, class of the first character."""
    last: np.ndarray
    """[vocab_size] uint8, class of the last character."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A loaded tokenizer. It never truncates, pads or adds special tokens, and reads the spelling
    of a special token in a text as plain text, so that its id cannot come out of a corpus."""

    backend: tokenizers.Tokenizer
    """The Rust tokenizer."""
    size: int
    """Ids that have a token, added tokens included: the largest id plus one."""
    cls_id: int
    """Opens every chunk; the tokenizer's bos where it has no cls."""
    sep_id: int
    """Closes every chunk; the tokenizer's eos where it has no sep. May equal cls_id."""
    pad_id: int
    mask_id: int
    unk_id: int | None
    """None where every text can be spelled, as in byte-level vocabularies."""
    special_ids: tuple[int, ...]
    """All special tokens, sorted."""
    reserved_ids: tuple[int, ...]
    """Every id below `vocab_size` that is never predicted nor drawn as a random replacement:
    special and [unused] tokens, ids without a token, the padding up to `vocab_size`. Sorted."""
    fingerprint: str
    """sha256, in hexadecimal, of what decides the ids of a text."""

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding: `size` rounded up to a multiple of 64."""
        return -(-self.size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that ids are stored in."""
        return token_dtype(self.size)

    @property
    def ordinary_ids(self) -> np.ndarray:
        """Ids that a text can hold and random replacements are drawn from, [n] int64, sorted."""
        return np.setdiff1d(np.arange(self.vocab_size), np.array(self.reserved_ids, np.int64))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle; the backend's own does not carry this setting."""
        self.__dict__.update(state)
        self.backend.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return each text's ids, [length] of `dtype`, without special tokens and never truncated.

        Texts must be encodable as UTF-8: no lone surrogates (`prepare/readers.py` replaces them).
        """
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        # A list takes NumPy twice as long to read as the array module.
        return [np.array(array("I", encoding.ids), self.dtype) for encoding in encodings]

    def word_parts(self) -> WordParts:
        """Return how tokens make up words, for whole-word masking."""
        content = json.loads(self.backend.to_str())
        model = content["model"]
        known = {i: t for t, i in self.backend.get_vocab(with_added_tokens=True).items()}
        tokens = [known.get(i, "") for i in range(self.vocab_size)]
        same = np.zeros(self.vocab_size, np.uint8)
        prefix, suffix = (
            model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix")
        )
        if prefix:
            starts = np.array([not token.startswith(prefix) for token in tokens])
            return WordParts(starts, same, same)
        if suffix:
            last = np.array([token.endswith(suffix) for token in tokens], np.uint8)
            return WordParts(np.zeros(self.vocab_size, bool), same, last)
        if '"ByteLevel"' in json.dumps([content["pre_tokenizer"], content["decoder"]]):
            decoder = self.backend.decoder
            tokens = [decoder.decode([token]) if token else "" for token in tokens]
        else:
            tokens = [token.replace("\u2581", " ") for token in tokens]
        return WordParts(
            np.array([token[:1].isspace() for token in tokens]),
            np.array([_character_class(token[:1]) for token in tokens], np.uint8),
            np.array([_character_class(token[-1:]) for token in tokens], np.uint8),
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, special tokens spelled out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def _character_class(character: str) -> int:
    if character.isspace():
        return 1
    if character.isdigit():
        return 2
    if character.isascii() and not character.isalpha():
        return 3
    return 0  # letters, and the bytes of characters that several tokens make up


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer from a tokenizer.json or from a folder as AutoTokenizer loads it.

    The roles (cls, sep, pad, mask, unk) come from tokenizer_config.json and
    special_tokens_map.json, else from the well-known spellings among the added tokens. Raises
    UserError when the path is missing or broken, or when a role that training needs is missing.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: no such tokenizer{within(path)}; give a tokenizer.json or the folder that "
            "holds one (data_prep/train_tokenizer.py makes one)"
        )
    file = path / "tokenizer.json" if path.is_dir() else path
    folder = file.parent if file.name == "tokenizer.json" else None
    names: dict[str, str] = {}
    if file.is_file():
        content = _read_json(file)
        config = _read_config(folder)
    else:
        content, names = _convert(path)
        config = {}
    return _build(str(path), content, config, names)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON, so no tokenizer: {error}") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not a JSON object")
    return content


def _read_config(folder: Path | None) -> dict[str, Any]:
    """Return the settings beside tokenizer.json; tokenizer_config.json wins."""
    config: dict[str, Any] = {}
    for name in reversed(CONFIG_FILES):
        if folder is not None and (folder / name).is_file():
            config.update(_read_json(folder / name))
    return config


def _convert(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Load a folder without tokenizer.json (vocab.txt and the like) through transformers."""
    if folder.is_dir() and not any(VOCABULARY.search(file.name) for file in folder.iterdir()):
        raise UserError(
            f"{folder}: holds no tokenizer.json, and no file of another vocabulary either "
            "(vocab.txt, spiece.model and the like)"
        )
    import transformers

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(
            str(folder), use_fast=True, local_files_only=True
        )
        content = json.loads(loaded.backend_tokenizer.to_str())
    except Exception as error:  # transformers raises whatever the file format's reader raises
        raise UserError(
            f"{folder}: holds no tokenizer.json, and AutoTokenizer cannot make one from what is "
            f"there: {str(error)[:300]}"
        ) from error
    names = {role: getattr(loaded, f"{role}_token", None) for role in ROLES}
    return content, {role: name for role, name in names.items() if name}


def _build(
    where: str, content: dict[str, Any], config: dict[str, Any], names: dict[str, str]
) -> Tokenizer:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    content = {**content, "truncation": None, "padding": None}
    if isinstance(content.get("model"), dict) and content["model"].get("dropout"):
        content["model"] = {**content["model"], "dropout": None}  # it makes ids random
    try:
        backend = Backend.from_str(json.dumps(content))
    except Exception as error:  # the Rust side raises bare Exceptions
        raise UserError(f"{where}: the tokenizers library refuses it: {error}") from error

    try:
        added = _add_configured_tokens(where, backend, config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: added_tokens_decoder of tokenizer_config.json is not a table of id to "
            f"token: {error!r}"
        ) from error
    names = {**_configured_names(config), **names}
    for name in names.values():
        added_tokens = backend.get_added_tokens_decoder()
        known = {token.content for token in added_tokens.values() if token.special}
        if name not in known and backend.token_to_id(name) is not None:
            backend.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    ids = {role: _role_id(where, backend, role, names.get(role)) for role in ROLES}
    _check_roles(where, backend, ids)
    backend.encode_special_tokens = True

    vocabulary = backend.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values()) + 1
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    special |= {i for i in ids.values() if i is not None}
    padded = -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    unused = {i for token, i in vocabulary.items() if UNUSED.fullmatch(token)}
    without_token = set(range(padded)) - set(vocabulary.values())
    reserved = sorted(special | unused | without_token)
    if len(reserved) == padded:
        raise UserError(f"{where}: the vocabulary holds nothing but special tokens")
    cls_id, sep_id, pad_id, mask_id = (ids[role] for role in ("cls", "sep", "pad", "mask"))
    assert cls_id is not None
    assert sep_id is not None
    assert pad_id is not None
    assert mask_id is not None
    return Tokenizer(
        backend=backend,
        size=size,
        cls_id=cls_id,
        sep_id=sep_id,
        pad_id=pad_id,
        mask_id=mask_id,
        unk_id=ids["unk"],
        special_ids=tuple(sorted(special)),
        reserved_ids=tuple(reserved),
        fingerprint=_fingerprint(content, added),
    )


def _add_configured_tokens(
    where: str, backend: tokenizers.Tokenizer, config: dict[str, Any]
) -> list[dict[str, Any]]:
    """Add the tokens that only tokenizer_config.json names, as AutoTokenizer does; return them."""
    from tokenizers import AddedToken

    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    added = []
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    entries = config.get("added_tokens_decoder") or {}
    for key in sorted(entries, key=int):
        entry = entries[key]
        if entry["content"] in known:
            continue
        options = {flag: bool(entry.get(flag, False)) for flag in flags}
        token = AddedToken(entry["content"], **options)
        if options["special"]:
            backend.add_special_tokens([token])
        else:
            backend.add_tokens([token])
        found = backend.token_to_id(entry["content"])
        if found != int(key):
            raise UserError(
                f"{where}: tokenizer_config.json gives the token {entry['content']!r} id {key}, "
                f"but it comes out as {found}; save the tokenizer again with save_pretrained so "
                "that its files agree"
            )
        added.append({"id": int(key), "content": entry["content"], **options})
    return added


def _configured_names(config: dict[str, Any]) -> dict[str, str]:
    names = {}
    for role, keys in CONFIG_KEYS.items():
        for key in keys:
            value = config.get(key)
            name = value.get("content") if isinstance(value, dict) else value
            if isinstance(name, str) and name:
                names[role] = name
                break
    return names


def _role_id(
    where: str, backend: tokenizers.Tokenizer, role: str, configured: str | None
) -> int | None:
    """Return the id of `role`, None for an unk token that is not there."""
    if configured is not None:
        found = backend.token_to_id(configured)
        if found is None and role != "unk":
            raise UserError(
                f"{where}: {' or '.join(CONFIG_FILES)} names {configured!r} as the {role} token, "
                "but the vocabulary does not hold it; add it to tokenizer.json, or name the one "
                "that it holds"
            )
        return found
    added = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
    for spelling in SPELLINGS[role]:
        if spelling in added:
            return added[spelling]
    if role == "unk":
        return None
    keys = " or ".join(CONFIG_KEYS[role])
    raise UserError(
        f"{where}: the tokenizer has no {role} token, which training needs. Looked for {keys} in "
        f"{' and '.join(CONFIG_FILES)}, and for {', '.join(SPELLINGS[role])} among the added "
        "tokens of tokenizer.json. Add one with tokenizers' add_special_tokens and save, or train "
        "a vocabulary with data_prep/train_tokenizer.py"
    )


def _check_roles(where: str, backend: tokenizers.Tokenizer, ids: dict[str, int | None]) -> None:
    for role, own in ids.items():
        if own is None:
            continue
        token = backend.id_to_token(own)
        encoded = backend.encode(token, add_special_tokens=False).ids
        if role != "unk" and encoded != [own]:
            raise UserError(
                f"{where}: the {role} token {token!r} has id {own} but encodes to {encoded}; make "
                "it a special added token"
            )
        shared = [other for other in ids if other != role and ids[other] == own]
        if role in ("pad", "mask") and shared:
            raise UserError(
                f"{where}: the {role} token {token!r} is also the {' and '.join(shared)} token; "
                f"training needs a {role} token of its own, so add one"
            )


def _fingerprint(content: dict[str, Any], added: list[dict[str, Any]]) -> str:
    """Hash the parts of tokenizer.json that decide ids; older files write merges as "a b"."""
    parts = {part: content.get(part) for part in ID_PARTS}
    model = dict(parts["model"] or {})
    if isinstance(model.get("merges"), list):
        model["merges"] = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    parts["model"] = model
    if added:
        parts["added_by_config"] = added
    return hashlib.sha256(
        json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
