"""Exported folders in the libraries that people use encoders with."""

import itertools

import numpy as np
import pytest
import torch

from restomod import save_transformers
from restomod.data.tokenizer import load_tokenizer
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.tools.export.export import export_run
from restomod.tools.export.onnx_graph import compare
from restomod.vectors.texts import TextEncoder
from tests.conftest import documents

TEXTS = ["x", *documents("prose", 20), "long " * 300, *documents("code", 10)]
LONGEST = 128


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """An exported model with windows of 16 tokens, which most texts exceed."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tiny.recipe["tokenizer"])
    ids = {"cls_id": tokenizer.cls_id, "sep_id": tokenizer.sep_id, "pad_id": tokenizer.pad_id}
    shape = {**tiny.recipe["model"], "vocab_size": tokenizer.vocab_size, **ids}
    model = MaskedLM(EncoderConfig(**shape, max_sequence_length=LONGEST))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    out = tmp_path_factory.mktemp("model") / "exported"
    save_transformers(model, out, tiny.recipe["tokenizer"])
    return out


def test_pipelines_of_transformers_give_our_numbers(folder):
    from transformers import pipeline

    encoder = TextEncoder.load(folder)
    text = TEXTS[3]
    (features,) = pipeline("feature-extraction", model=str(folder))(text)
    np.testing.assert_allclose(features, encoder.embed_tokens([text])[0], atol=1e-4)
    masked = f"{' '.join(text.split()[:3])} [MASK] {' '.join(text.split()[4:])}"
    fill = pipeline("fill-mask", model=str(folder))
    words = torch.tensor(fill.tokenizer(masked)["input_ids"])
    place = words.tolist().index(encoder.tokenizer.mask_id)
    with torch.no_grad():
        scores = encoder.model.logits(words, torch.tensor([0, len(words)]))[place].softmax(-1)
    found = fill(masked, top_k=3)
    assert [guess["token"] for guess in found] == scores.topk(3).indices.tolist()
    np.testing.assert_allclose([g["score"] for g in found], scores.topk(3).values, atol=1e-4)


@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification"])
def test_fine_tuning_with_trainer_lowers_the_loss(folder, tmp_path, kind):
    import transformers
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = zip(documents("prose", 16), documents("code", 16), strict=True)
    per_token = kind == "TokenClassification"
    rows = []
    for n, text in enumerate(itertools.chain(*pairs)):
        row = dict(tokenizer(text, truncation=True, max_length=32))
        row["labels"] = [n % 2] * len(row["input_ids"]) if per_token else n % 2
        rows.append(row)
    collator = "DataCollatorForTokenClassification" if per_token else "DataCollatorWithPadding"
    trainer = Trainer(
        getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder, num_labels=2),
        TrainingArguments(
            str(tmp_path),
            max_steps=12,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=getattr(transformers, collator)(tokenizer),
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert np.mean(losses[-3:]) < 0.5 * losses[0], losses


def test_sentence_transformers_pools_to_our_vectors(folder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    assert "'pooling_mode_mean_tokens': True" in repr(model)
    theirs = model.encode(TEXTS, batch_size=8)
    np.testing.assert_allclose(TextEncoder.load(folder).embed(TEXTS), theirs, atol=1e-4)


def test_pylate_takes_our_token_vectors(folder):
    """[MASK] marks documents here: a mark of PyLate's own would be a row that we do not have."""
    from pylate import models

    model = models.ColBERT(
        str(folder),
        device="cpu",
        embedding_size=16,
        query_prefix="[MASK]",
        document_prefix="[MASK]",
        document_length=100,
        skiplist_words=[],
    )
    theirs = model.encode(TEXTS, is_query=False, batch_size=8, normalize_embeddings=False)
    encoder = TextEncoder.load(folder, max_tokens=99)
    project = model[1].linear.weight.detach()
    for ids, vectors in zip(encoder.ids(TEXTS), theirs, strict=True):
        marked = torch.from_numpy(np.insert(ids, 1, encoder.tokenizer.mask_id))
        with torch.no_grad():
            hidden = encoder.model.encode(marked, torch.tensor([0, len(marked)]))
        np.testing.assert_allclose(vectors, hidden @ project.T, atol=1e-4)


@pytest.fixture(scope="module")
def graph(folder, tmp_path_factory):
    import onnxruntime

    out = tmp_path_factory.mktemp("graph") / "out"
    assert "its logits differ from the model's by" in export_run(folder, out, onnx=True)
    return onnxruntime.InferenceSession(str(out / "onnx" / "model.onnx"))


@pytest.mark.parametrize("batch", [[1], [5, 1], [LONGEST, 17, 60], [41, 40, 3, 9]])
def test_onnx_graph_has_our_logits_and_vectors_whatever_the_batch(folder, graph, batch):
    encoder = TextEncoder.load(folder)
    generator = torch.Generator().manual_seed(len(batch))
    rows = [torch.randint(5, 512, (n,), generator=generator) for n in batch]
    ids = torch.nn.utils.rnn.pad_sequence(rows, True, encoder.tokenizer.pad_id)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True)
    feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    logits, hidden = graph.run(["logits", "last_hidden_state"], feed)
    packed, bounds = torch.cat(rows), torch.tensor([0, *itertools.accumulate(batch)])
    with torch.no_grad():
        expected = encoder.model.logits(packed, bounds), encoder.model.encode(packed, bounds)
    np.testing.assert_allclose(logits[mask.bool().numpy()], expected[0], atol=1e-4)
    np.testing.assert_allclose(hidden[mask.bool().numpy()], expected[1], atol=1e-4)


def test_graph_of_another_model_is_told_apart(folder, graph):
    model = TextEncoder.load(folder).model
    assert compare(graph, model)[0] < 1e-4
    with torch.no_grad():
        model.encoder.layers[2].mlp.Wo.weight[0, 0] += 1
    assert compare(graph, model)[0] > 1e-3
