"""A tokenizer is loaded with its roles checked, or refused with a message that helps."""

import json
import pickle

import numpy as np
import pytest
import train_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from restomod.data.tokenizer import load_tokenizer, token_dtype
from restomod.errors import UserError

TEXTS = ["the quick brown fox jumps over the lazy dog", "def f(x):\n    return x + 1\n"] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer.save_tokenizer(train_tokenizer.train_bpe(TEXTS, 448), path, 1024)
    return path


def word_piece(more_words=()):
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    words = ["the", "fox", "##es", "run", "[", "]", "mask", *more_words]
    vocabulary = {token: n for n, token in enumerate([*specials, *words])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(specials)
    return backend


def sentence_piece_like(path, names=("<s>", "<pad>", "</s>", "<unk>", "<mask>")):
    """A bare tokenizer.json in the spelling of RoBERTa."""
    backend = train_tokenizer.train_bpe(TEXTS, 320)
    content = json.loads(backend.to_str())
    vocabulary = list(content["model"]["vocab"])[5:]
    content["model"]["vocab"] = {token: n for n, token in enumerate([*names, *vocabulary])}
    content["model"]["merges"] = []
    content["added_tokens"] = [
        {"id": n, "content": name, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for n, name in enumerate(names)
    ]
    content["post_processor"] = None
    file = path / "tokenizer.json"
    file.write_text(json.dumps(content))
    return file


def test_ids_equal_those_of_autotokenizer(folder):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder)
    texts = [*TEXTS[:2], "", "naïve — 東京 😀", "a\0b", "  indented\n\n\ttabs  "]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == text
    assert type(theirs).__name__ == "PreTrainedTokenizerFast"
    assert len(theirs) == ours.size == ours.vocab_size == 448
    for role in ("cls", "sep", "pad", "mask", "unk"):
        assert getattr(theirs, f"{role}_token_id") == getattr(ours, f"{role}_id")
    assert theirs("fox")["input_ids"][0] == ours.cls_id
    assert theirs("fox")["input_ids"][-1] == ours.sep_id
    assert "token_type_ids" not in theirs("fox")
    assert theirs.model_max_length == 1024


def test_a_folder_and_its_tokenizer_json_are_the_same_tokenizer(folder):
    assert (
        load_tokenizer(folder).fingerprint == load_tokenizer(folder / "tokenizer.json").fingerprint
    )


def test_special_tokens_spelled_in_a_text_are_plain_text(folder):
    tokenizer = load_tokenizer(folder)
    (ids,) = tokenizer.encode_batch(["[MASK] [CLS][SEP] [PAD] [UNK] [unused0]"])
    assert not set(ids.tolist()) & set(tokenizer.special_ids)
    assert tokenizer.decode(ids) == "[MASK] [CLS][SEP] [PAD] [UNK] [unused0]"


def test_ordinary_ids_leave_out_special_unused_and_padding_ids(folder):
    tokenizer = load_tokenizer(folder)
    names = [tokenizer.backend.id_to_token(int(i)) for i in tokenizer.ordinary_ids]
    assert None not in names
    assert not [n for n in names if n.startswith(("[unused", "[MASK", "[CLS"))]
    assert sorted([*tokenizer.ordinary_ids, *tokenizer.reserved_ids]) == list(range(448))
    assert list(tokenizer.special_ids) == sorted(set(tokenizer.special_ids))


def test_vocabulary_is_rounded_up_and_its_padding_is_reserved(tmp_path):
    word_piece().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.size, tokenizer.vocab_size) == (12, 64)
    assert set(range(12, 64)) < set(tokenizer.reserved_ids)
    assert tokenizer.ordinary_ids.tolist() == list(range(5, 12))
    assert tokenizer.dtype == np.uint16


def test_word_piece_of_bert_loads_as_a_folder_and_as_a_bare_file(tmp_path):
    import transformers

    bert = transformers.BertTokenizerFast(tokenizer_object=word_piece())
    bert.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    (ids,) = tokenizer.encode_batch(["The foxes run"])
    assert ids.tolist() == bert("The foxes run", add_special_tokens=False)["input_ids"]
    assert tokenizer.mask_id == bert.mask_token_id
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    assert load_tokenizer(tmp_path).mask_id == bert.mask_token_id


def test_a_folder_with_only_a_vocab_txt_is_converted(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fox", "##es"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode_batch(["Foxes"])[0].tolist() == [5, 6]
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.cls_id) == (0, 4, 2)


def test_bare_file_in_another_spelling_and_bos_eos_as_cls_sep(tmp_path):
    tokenizer = load_tokenizer(sentence_piece_like(tmp_path))
    assert (tokenizer.cls_id, tokenizer.pad_id, tokenizer.sep_id) == (0, 1, 2)
    assert (tokenizer.unk_id, tokenizer.mask_id) == (3, 4)


def test_configured_roles_win_and_bos_eos_may_be_one_token(tmp_path):
    sentence_piece_like(tmp_path, ("<a>", "<b>", "<c>", "<d>", "<e>"))
    config = {
        "bos_token": {"content": "<a>", "lstrip": False},
        "eos_token": "<a>",
        "pad_token": "<b>",
        "mask_token": "<c>",
        "unk_token": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id) == (0, 0, None)
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)


def test_tokens_that_only_the_config_names_are_added(tmp_path):
    backend = word_piece()
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"added_tokens_decoder": {"12": {"content": "<new>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.size == 13
    assert 12 in tokenizer.special_ids
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config).replace('"12"', '"40"'))
    with pytest.raises(UserError, match="id 40, but it comes out as 12"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("<s>", "<pad>", "</s>", "<unk>", "<x>"), r"no mask token.*\[MASK\], <mask>"),
        (("<s>", "<x>", "</s>", "<unk>", "<mask>"), r"no pad token"),
        (("<x>", "<pad>", "</s>", "<unk>", "<mask>"), r"no cls token.*bos_token"),
        (("<s>", "<pad>", "<x>", "<unk>", "<mask>"), r"no sep token"),
    ],
)
def test_a_missing_role_is_refused(tmp_path, names, said):
    file = sentence_piece_like(tmp_path, names)
    with pytest.raises(UserError, match=said) as error:
        load_tokenizer(file)
    assert "train_tokenizer.py" in str(error.value)


def test_a_role_outside_the_vocabulary_or_shared_with_another_is_refused(tmp_path):
    sentence_piece_like(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"mask_token": "<nowhere>"}')
    with pytest.raises(UserError, match="'<nowhere>' as the mask token, but the vocabulary"):
        load_tokenizer(tmp_path)
    config.write_text('{"pad_token": "</s>"}')
    with pytest.raises(UserError, match="pad token '</s>' is also the sep token"):
        load_tokenizer(tmp_path)


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "nowhere")
    file = tmp_path / "tokenizer.json"
    for content, said in (
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        ('{"model": {"type": "Nothing"}}', "tokenizers library refuses"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            load_tokenizer(file)
    file.unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_recorded_truncation_and_padding_are_switched_off(folder, tmp_path):
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    short, long = tokenizer.encode_batch(["a", "fox " * 1000])
    assert len(short) == 1
    assert tokenizer.decode(long) == "fox " * 1000
    assert tokenizer.fingerprint == load_tokenizer(folder).fingerprint


def test_fingerprint_follows_the_ids_and_not_the_formatting(folder, tmp_path):
    content = json.loads((folder / "tokenizer.json").read_text())
    file = tmp_path / "tokenizer.json"
    first = load_tokenizer(folder).fingerprint
    content["post_processor"] = None
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    file.write_text(json.dumps(content, indent=7, sort_keys=True))
    assert load_tokenizer(file).fingerprint == first
    content["model"]["merges"].pop()
    file.write_text(json.dumps(content))
    assert load_tokenizer(file).fingerprint != first


def test_ids_above_two_bytes_are_stored_in_four(tmp_path):
    assert token_dtype(1 << 16) == np.uint16
    assert token_dtype((1 << 16) + 1) == np.uint32
    backend = word_piece([f"w{n}" for n in range(1 << 16)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    (ids,) = tokenizer.encode_batch(["w65535"])
    assert ids.dtype == np.uint32
    assert ids.tolist() == [12 + 65535]


def test_a_tokenizer_sent_to_a_worker_reads_special_tokens_as_text_there_too(folder):
    tokenizer = pickle.loads(pickle.dumps(load_tokenizer(folder)))
    assert tokenizer.decode(tokenizer.encode_batch(["[MASK] fox"])[0]) == "[MASK] fox"
    assert not set(tokenizer.encode_batch(["[MASK]"])[0].tolist()) & set(tokenizer.special_ids)
