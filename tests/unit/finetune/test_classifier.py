import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from restomod import save_transformers
from restomod.errors import UserError
from restomod.finetune.backbone import limit, load_backbone, load_own_tokenizer
from restomod.finetune.classifier import Classifier, save_classifier
from restomod.finetune.examples import Example, pack
from restomod.tools.runs import load_model
from tests.finetuning import save_tiny_model

TEXTS = ["", "co", "coaa praa " * 9, "scaa " * 30]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return save_tiny_model(tiny.recipe["tokenizer"], tmp_path_factory.mktemp("m") / "model")


def make(folder, names, words=False, pooling="mean", dropout=0.0, attention_dropout=0.0):
    model = load_backbone(folder, attention_dropout, 0)
    classifier = Classifier(model, names, words=words, pooling=pooling, dropout=dropout, seed=1)
    torch.nn.init.normal_(classifier.classifier.bias)
    return classifier


def texts(folder, words=False):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [np.array(tokenizer(text).input_ids) for text in TEXTS]
    return [
        Example(i, np.zeros(len(i) if words else 1, np.int64), np.arange(len(i)) if words else None)
        for i in ids
    ]


@pytest.mark.parametrize(
    ("names", "words", "pooling"),
    [(["a", "b", "c"], False, "mean"), (["a", "b"], False, "cls"), ([], False, "mean"),
     (["O", "B-X"], True, "mean")],
)  # fmt: skip
def test_transformers_computes_the_same_logits_from_the_saved_folder(
    folder, tiny, tmp_path, names, words, pooling
):
    classifier = make(folder, names, words, pooling, dropout=0.1)
    save_classifier(classifier, tmp_path / "out", tiny.recipe["tokenizer"])
    auto = AutoModelForTokenClassification if words else AutoModelForSequenceClassification
    theirs, told = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values())
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(
        TEXTS, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = theirs.eval()(**batch).logits
    for n, found in enumerate(classifier.predict(texts(folder, words))):
        wanted = expected[n, : len(found)] if words else expected[n][None]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert list(theirs.config.id2label.values()) == (names or ["LABEL_0"])
    assert theirs.config.problem_type == (
        None if words else "single_label_classification" if names else "regression"
    )


def test_another_fine_tuning_starts_from_the_encoder_and_head_of_a_saved_classifier(
    folder, tiny, tmp_path
):
    classifier = make(folder, ["a", "b"])
    save_classifier(classifier, tmp_path / "out", tiny.recipe["tokenizer"])
    with pytest.raises(UserError, match=r"lack decoder.bias"):
        load_model(tmp_path / "out")
    again = load_backbone(tmp_path / "out", 0.0, 0)
    for name, weight in classifier.model.state_dict().items():
        if name != "head.bias":
            assert torch.equal(again.state_dict()[name], weight)
    save_transformers(again, tmp_path / "plain")
    fields = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert fields["architectures"] == ["ModernBertForMaskedLM"]
    assert not {"id2label", "label2id", "problem_type"} & fields.keys()
    save_classifier(make(tmp_path / "out", []), tmp_path / "next", tiny.recipe["tokenizer"])
    fields = json.loads((tmp_path / "next" / "config.json").read_text())
    assert fields["id2label"] == {"0": "LABEL_0"}
    assert fields["problem_type"] == "regression"


def test_gradients_reach_every_weight_but_the_decoders_bias(folder):
    classifier = make(folder, ["a", "b"]).train()
    classifier(**pack(texts(folder)))["loss"].backward()
    untouched = [name for name, p in classifier.named_parameters() if p.grad is None]
    assert untouched == ["model.head.bias"]
    assert all(p.grad.abs().sum() > 0 for p in classifier.parameters() if p.grad is not None)


@pytest.mark.parametrize("words", [False, True])
def test_the_loss_of_micro_batches_adds_up_to_that_of_the_batch(folder, words):
    classifier, examples = make(folder, ["a", "b"], words), texts(folder, words)
    count = sum(len(example.labels) for example in examples)
    whole = classifier(**pack(examples))["loss"]
    parts = [classifier(**pack([e]), num_items_in_batch=count)["loss"] for e in examples]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_dropout_is_on_in_training_only(folder):
    classifier, batch = make(folder, ["a", "b"], attention_dropout=0.3), pack(texts(folder))
    plain = make(folder, ["a", "b"])
    plain.load_state_dict(classifier.state_dict())
    state = torch.get_rng_state()
    classifier.predict(texts(folder))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        wanted = plain.train()(**batch)["logits"]
        torch.testing.assert_close(classifier.eval()(**batch)["logits"], wanted)
        torch.manual_seed(3)
        first, second = (classifier.train()(**batch)["logits"] for _ in range(2))
        torch.manual_seed(3)
        again = classifier(**batch)["logits"]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.allclose(first, wanted)


def test_a_tokenizer_that_could_not_be_saved_is_refused_before_training(folder, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no tokenizer.json to save with the model"):
        load_own_tokenizer(tmp_path)
    assert load_own_tokenizer(folder)[0] == folder


def test_models_that_transformers_cannot_express_and_lengths_they_do_not_take_are_refused(
    folder, tiny, monkeypatch
):
    with pytest.raises(UserError, match="max_tokens 65: the model takes up to 64"):
        limit(load_backbone(folder, 0.0, 0), 65)
    model = load_model(folder)
    model.config.causal = True
    monkeypatch.setattr("restomod.finetune.backbone.load_model", lambda *_, **__: model)
    with pytest.raises(UserError, match="cannot express this model's causal=True"):
        load_backbone(folder, 0.0, 0)
