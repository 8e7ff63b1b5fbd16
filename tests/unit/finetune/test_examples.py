import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from restomod.data.tokenizer import load_tokenizer
from restomod.errors import UserError
from restomod.finetune.config import ColumnsConfig, FinetuneConfig
from restomod.finetune.data import Table
from restomod.finetune.examples import Example, make_examples, pack, truncate_pair, warn_of_template
from tests.finetuning import sentences


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(tiny.recipe["tokenizer"])


def table(rows):
    import datasets

    return Table(datasets.Dataset.from_list(rows), "t.jsonl")


def examples(tokenizer, train, validation=None, max_tokens=64, **keys):
    config = FinetuneConfig(**{"task": "classification", **keys})
    tables = table(train), table(validation or train)
    return make_examples(*tables, config, tokenizer, max_tokens)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(2, 15))
def test_pairs_are_cut_as_transformers_cuts_them(first, second, room):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.enable_truncation(room, strategy="longest_first")
    ids = tokenizer.encode("a " * first, "b " * second).ids
    assert truncate_pair(first, second, room) == (ids.count(0), ids.count(1))


def test_texts_and_pairs_get_the_tokens_that_transformers_gives_them(tiny, tokenizer):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tiny.recipe["tokenizer"])
    rows = [{"text": "co pra " * n, "other": "pr" * m, "label": n % 2} for n, m in
            ((1, 1), (40, 3), (2, 80), (50, 60))]  # fmt: skip
    limits = {"truncation": True, "max_length": 20}
    data = examples(tokenizer, rows, max_tokens=20)
    for row, example in zip(rows, data.train, strict=True):
        assert example.ids.tolist() == theirs(row["text"], **limits).input_ids
    data = examples(tokenizer, rows, max_tokens=20, columns=ColumnsConfig(pair="other"))
    for row, example in zip(rows, data.train, strict=True):
        assert example.ids.tolist() == theirs(row["text"], row["other"], **limits).input_ids


def test_words_get_the_label_of_the_first_token_that_plain_text_gives_them(tokenizer):
    rows = [{"words": ["coaa", "", "praa"], "tags": ["X", "O", "Y"]}] * 2
    data = examples(tokenizer, rows, task="tokens")
    example = data.train[0]
    plain = tokenizer.backend.encode("coaa  praa", add_special_tokens=False)
    assert example.ids.tolist() == [tokenizer.cls_id, *plain.ids, tokenizer.sep_id]
    assert example.firsts[1] == -1
    assert data.names == ["O", "X", "Y"]
    batch = pack(data.train)
    assert batch["labels"].tolist() == [1, 2] * 2
    for position, word in zip(batch["positions"].tolist(), ["coaa", "praa"] * 2, strict=True):
        token = tokenizer.backend.decode([int(batch["input_ids"][position])])
        assert token.strip()
        assert word.startswith(token.strip())


def test_spans_of_characters_become_tags_of_first_tokens(tokenizer):
    spans = [{"start": 5, "end": 9, "label": "X"}]
    rows = [{"text": "coaa praa, co", "spans": spans}, {"text": "co", "spans": []}]
    columns = ColumnsConfig(spans="spans")
    data = examples(tokenizer, rows, task="tokens", columns=columns)
    assert data.names == ["B-X", "O"]
    assert data.train[0].labels.tolist() == [1, 0, 1, 1]
    first = int(data.train[0].ids[data.train[0].firsts[1]])
    assert tokenizer.backend.decode([first]).strip()[:1] == "p"
    rows[1]["spans"] = [{"start": 1, "end": 9, "label": "X"}]
    with pytest.raises(UserError, match=r"row 2: spans: span 1 to 9 .X. lies outside the text"):
        examples(tokenizer, rows, task="tokens", columns=columns)


def test_words_that_are_cut_off_have_no_token_and_texts_without_any_teach_nothing(tokenizer):
    rows = [
        {"words": ["coaa"] * 30, "tags": ["X", "O"] * 15},
        {"words": ["", ""], "tags": ["O"] * 2},
    ]
    data = examples(tokenizer, rows, task="tokens", max_tokens=12)
    firsts = data.train[0].firsts
    kept = (firsts >= 0).sum()
    assert 2 <= kept < 30
    assert (firsts[:kept] >= 1).all()
    assert (firsts < 11).all()
    assert (firsts[kept:] == -1).all()
    assert len(data.train[0].ids) == 12
    assert (len(data.train), len(data.validation)) == (1, 2)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.randoms())
def test_a_batch_is_the_documents_one_after_the_other(lengths, random):
    rows = []
    for n, length in enumerate(lengths):
        firsts = np.array([random.choice([-1, k]) for k in range(length)])
        rows.append(Example(np.arange(length) + 100 * n, np.arange(length), firsts))
    batch = pack(rows)
    bounds = batch["cu_seqlens"].tolist()
    for row, begin, end in zip(rows, bounds, bounds[1:], strict=False):
        assert batch["input_ids"][begin:end].tolist() == row.ids.tolist()
    assert batch["max_seqlen"] == max(lengths)
    kept = [i for row in rows for i, first in zip(row.ids, row.firsts, strict=True) if first >= 0]
    assert batch["input_ids"][batch["positions"]].tolist() == kept
    assert (batch["input_ids"][batch["positions"]] % 100).tolist() == batch["labels"].tolist()


LABELLED = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


@pytest.mark.parametrize(
    ("train", "validation", "keys", "message"),
    [
        (LABELLED, [{"text": "c", "label": "z"}], {},
         "1 label that the training set does not have: 'z' .1 times.; it has 'x', 'y'"),
        (LABELLED[:1], None, {}, "label holds 'x' only; there is nothing to tell apart"),
        ([{"text": "a", "label": 0.5}] * 2, None, {}, "label holds float; .*task: regression"),
        (LABELLED, None, {"task": "regression"}, "row 1: label is 'x', a finite number"),
        (LABELLED, None, {"task": "tokens"}, "has no column words, tags; it has text, label"),
        ([{"words": ["a"], "tags": ["O", "O"]}], None, {"task": "tokens"},
         "row 1: 1 words but 2 tags"),
        ([{"words": "a b", "tags": "O O"}], None, {"task": "tokens"}, "must be lists"),
        ([{"words": [""], "tags": ["O"]}, {"words": [""], "tags": ["P"]}], None,
         {"task": "tokens"}, "no word has a token"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(tokenizer, train, validation, keys, message):
    with pytest.raises(UserError, match=message):
        examples(tokenizer, train, validation, **keys)


def test_numbers_and_names_of_a_class_label_column_mean_the_same(tokenizer):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])}
    )
    rows = [{"text": "a", "label": "no"}, {"text": "b", "label": "yes"}]
    train = Table(datasets.Dataset.from_list(rows, features), "train")
    config = FinetuneConfig(task="classification")
    data = make_examples(train, table(rows), config, tokenizer, 64)
    assert data.names == ["yes", "no"]
    for part in (data.train, data.validation):
        assert [int(example.labels[0]) for example in part] == [1, 0]


def test_the_digest_tells_other_data(tokenizer):
    rows = sentences(20)
    same = examples(tokenizer, rows).digest()
    assert examples(tokenizer, rows).digest() == same
    assert examples(tokenizer, [*rows[1:], rows[0]], rows).digest() != same
    assert examples(tokenizer, rows, rows[1:]).digest() != same


def test_another_template_than_ours_is_told(tokenizer, caplog):
    caplog.set_level(logging.WARNING)
    logging.getLogger("restomod").propagate = True
    warn_of_template(tokenizer, True)
    assert not caplog.messages
    other = Tokenizer.from_str(tokenizer.backend.to_str())
    from dataclasses import replace

    from tokenizers.processors import TemplateProcessing

    other.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    warn_of_template(replace(tokenizer, backend=other), True)
    assert "template" in caplog.text


def test_long_texts_are_counted(tokenizer, caplog):
    logging.getLogger("restomod").propagate = True
    rows = [{"text": "co " * n, "label": n % 2} for n in (1, 2, 60)]
    examples(tokenizer, rows, max_tokens=8)
    assert "t.jsonl: 1 of 3 texts are cut to 8 tokens" in caplog.text


def test_labels_of_numbers_are_floats(tokenizer):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 2.5}]
    batch = pack(examples(tokenizer, rows, task="regression").train)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [1, 2.5]
