import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from restomod import save_transformers
from restomod.data.tokenizer import load_tokenizer
from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.vectors.texts import TextEncoder, by_length
from tests.conftest import documents


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tiny.recipe["tokenizer"])
    config = EncoderConfig(
        **tiny.recipe["model"],
        vocab_size=tokenizer.vocab_size,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        pad_id=tokenizer.pad_id,
        max_sequence_length=64,
    )
    model = MaskedLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    out = tmp_path_factory.mktemp("model") / "exported"
    save_transformers(model, out, tiny.recipe["tokenizer"])
    return out


TEXTS = ["", "x", *documents("prose", 40), "long " * 500]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_transformers_document_by_document(folder, pooling):
    ours = TextEncoder.load(folder, batch_tokens=200).embed(TEXTS, pooling)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for text, vector in zip(TEXTS, ours, strict=True):
        words = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**words).last_hidden_state[0]
        expected = hidden.mean(0) if pooling == "mean" else hidden[0]
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_vectors_do_not_depend_on_what_else_is_in_the_batch(folder):
    encoder = TextEncoder.load(folder, batch_tokens=1)
    alone = encoder.embed(TEXTS)
    encoder.batch_tokens = 10_000
    np.testing.assert_allclose(encoder.embed(iter(TEXTS)), alone, atol=1e-6)
    assert encoder.embed([]).shape == (0, 32)


def test_token_vectors_are_those_that_the_mean_is_taken_of(folder):
    encoder = TextEncoder.load(folder, max_tokens=20)
    tokens = encoder.embed_tokens(TEXTS)
    assert [len(t) for t in tokens] == [len(ids) for ids in encoder.ids(TEXTS)]
    assert max(map(len, tokens)) == 20
    means = np.stack([t.mean(0) for t in tokens])
    np.testing.assert_allclose(encoder.embed(TEXTS), means, atol=1e-6)


def test_batches_hold_all_documents_once_and_no_more_tokens_than_asked():
    lengths = [5, 300, 1, 40, 40, 7, 90, 64]
    batches = list(by_length(lengths, 100))
    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or sum(lengths[n] for n in b) <= 100 for b in batches)
    assert [lengths[n] for batch in batches for n in batch] == sorted(lengths, reverse=True)


def test_a_model_without_a_tokenizer_or_a_limit_beyond_the_models_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="max_tokens 65: the model takes 3 to 64"):
        TextEncoder.load(folder, max_tokens=65)
    save_transformers(TextEncoder.load(folder).model, tmp_path / "bare")
    with pytest.raises(UserError, match="has no tokenizer"):
        TextEncoder.load(tmp_path / "bare")


def test_windows_of_a_long_text_count_by_their_tokens(folder):
    encoder = TextEncoder.load(folder, max_tokens=20)
    texts = [TEXTS[2], "", "long " * 30]
    whole = encoder.embed_windows(texts)
    ids = encoder.tokenizer.encode_batch(texts)
    assert len(ids[2]) > 20
    for vector, own in zip(whole, ids, strict=True):
        pieces = [own[n : n + 18] for n in range(0, max(len(own), 1), 18)]
        ends = [encoder.tokenizer.cls_id, encoder.tokenizer.sep_id]
        tokens = []
        for piece in pieces:
            document = torch.tensor([ends[0], *piece.tolist(), ends[1]])
            with torch.no_grad():
                tokens.append(encoder.model.encode(document, torch.tensor([0, len(document)])))
        np.testing.assert_allclose(vector, torch.cat(tokens).mean(0), atol=1e-5)
    short = [text for text, own in zip(texts, ids, strict=True) if len(own) <= 18]
    np.testing.assert_allclose(encoder.embed_windows(short), encoder.embed(short), atol=1e-6)
