"""Fine-tuning whole: every task learns made-up data, what it saves is what others load, and a run
that is killed or asked to stop goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from restomod.errors import UserError
from restomod.finetune.config import load_finetune
from restomod.finetune.grid import check_data, check_task, run_grid
from restomod.finetune.run import describe, finetune
from restomod.interrupts import Interrupts, Stopped
from restomod.prepare.atomic import read_json
from restomod.tools.runs import load_model
from restomod.vectors.texts import TextEncoder
from tests.finetuning import FAST, pairs, save_tiny_model, sentences, write


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and data."""
    import train_tokenizer

    folder = tmp_path_factory.mktemp("finetune")
    write(folder / "sentences.jsonl", sentences(300))
    write(folder / "pairs.jsonl", pairs(400))
    rows = [{"text": row["text"]} for row in sentences(300)]
    rows += [{"text": f"{row['anchor']} {row['positive']}"} for row in pairs(400)]
    corpus = write(folder / "corpus.jsonl", rows)
    words = ["--vocab-size", "384", "--out", str(folder / "tokenizer"), "--input", str(corpus)]
    assert train_tokenizer.main(words) == 0
    save_tiny_model(str(folder / "tokenizer"), folder / "model")
    return folder


def configure(place: Path, out: Path, file: str = "sentences.jsonl", **keys):
    words = {"model": place / "model", "out": out, "data.path": place / file}
    words |= {f"training.{key}": value for key, value in FAST.items()} | keys
    return load_finetune([], [f"{key}={value}" for key, value in words.items()])


def run(*arguments, **keys):
    config = configure(*arguments, **keys)
    return config, finetune(config, Interrupts())


def test_classes_are_learned_with_two_seeds_and_micro_batches(place, tmp_path):
    from transformers import pipeline

    keys = {"training.micro_batch": 8, "training.attention_dropout": 0.05, "seeds": "[1,2]"}
    keys |= {"training.classifier_dropout": 0.05}
    config, scores = run(place, tmp_path / "out", **keys)
    assert [score.seed for score in scores] == [1, 2]
    assert all(score.value > 0.9 for score in scores)  # one half is chance
    results = read_json(tmp_path / "out" / "results.json")
    assert results["mean"] == pytest.approx(np.mean([score.value for score in scores]))
    assert results["data"]["validation"]["examples"] == 30
    assert results["config"]["training"]["lr"] == FAST["lr"]
    assert "median" in describe(config, scores)
    assert sorted(p.name for p in (tmp_path / "out").glob("*/*")) == sorted(
        [*(p.name for p in (tmp_path / "out" / "model").iterdir()), "result.json", "result.json"]
    )
    classify = pipeline("text-classification", str(tmp_path / "out" / "model"))
    fresh = sentences(60, seed=1)
    found = classify([row["text"] for row in fresh])
    right = [row["label"] == answer["label"] for row, answer in zip(fresh, found, strict=True)]
    assert np.mean(right) > 0.9


def test_numbers_are_learned_from_pairs(place, tmp_path):
    keys = {"task": "regression", "columns.label": "score", "columns.pair": "text"}
    _, scores = run(place, tmp_path / "out", **keys)
    assert scores[0].scores["spearman"] > 0.8
    assert scores[0].scores["pearson"] > 0.8


def test_words_are_learned_and_tagged_by_transformers_in_plain_text(place, tmp_path):
    from transformers import pipeline

    _, scores = run(place, tmp_path / "out", task="tokens", **{"training.keep": "best"})
    assert scores[0].metric == "entity_f1"
    assert scores[0].value > 0.95
    model = str(tmp_path / "out" / "model")
    tag = pipeline("token-classification", model, aggregation_strategy="first")
    found = [(e["entity_group"], e["word"].strip()) for e in tag("plum red fig grey pear")]
    assert found == [("COLOUR", "red"), ("COLOUR", "grey")]


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_retrieval_is_learned_and_sentence_transformers_computes_the_same(
    place, tmp_path, micro_batch
):
    from sentence_transformers import SentenceTransformer

    keys = {
        "columns.negatives": "[negative]",
        "training.micro_batch": micro_batch,
        "training.attention_dropout": 0.05,
        "retrieval.query_prompt": '"be "',
        "training.epochs": 4,
    }
    _, scores = run(place, tmp_path / "out", "pairs.jsonl", task="retrieval", **keys)
    assert scores[0].scores["recall@10"] > 0.5  # of 80 documents; an eighth is chance
    theirs = SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu")
    assert type(theirs[0].auto_model).__name__ == "ModernBertModel"
    texts = ["ba", "be bi ko ku", "lu " * 80]
    ours = TextEncoder.load(tmp_path / "out" / "model").embed(texts)
    np.testing.assert_allclose(theirs.encode(texts), ours, atol=1e-4)
    prompted = TextEncoder.load(tmp_path / "out" / "model").embed(["be " + t for t in texts])
    np.testing.assert_allclose(theirs.encode_query(texts), prompted, atol=1e-4)


def test_seeds_of_retrieval_draw_other_batches(place, tmp_path):
    keys = {"task": "retrieval", "training.epochs": 0.5, "seeds": "[1,2]"}
    run(place, tmp_path / "out", "pairs.jsonl", **keys)
    losses = [read_json(p)["last_loss"] for p in (tmp_path / "out").glob("seed-*/result.json")]
    assert len(set(losses)) == 2


def test_a_cached_loss_has_the_gradients_of_the_plain_one(place):
    from sentence_transformers.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    from restomod.data.tokenizer import load_tokenizer
    from restomod.finetune.backbone import load_backbone
    from restomod.finetune.retrieval import SentenceTransformer, Unpadded

    gradients = []
    for kind in (MultipleNegativesRankingLoss, CachedMultipleNegativesRankingLoss):
        model = load_backbone(place / "model", 0.0, 0)
        module = Unpadded(model, load_tokenizer(place / "tokenizer"), 64, "mean")
        sentence = SentenceTransformer(modules=[module], device="cpu")
        sizes = {"mini_batch_size": 2} if kind is CachedMultipleNegativesRankingLoss else {}
        rows = pairs(5)
        features = [module.tokenize([r[c] for r in rows]) for c in ("anchor", "positive")]
        kind(sentence, **sizes)(features, None).backward()
        gradients.append(model.encoder.embedding.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-3)


def test_a_model_starts_from_anothers_result_and_seeds_are_added(place, tmp_path):
    run(place, tmp_path / "first", **{"training.epochs": 1})
    keys = {"model": tmp_path / "first" / "model", "task": "regression", "columns.label": "score"}
    keys |= {"training.epochs": 0.5, "seeds": "[1]"}
    _, scores = run(place, tmp_path / "second", **keys)
    _, again = run(place, tmp_path / "second", **{**keys, "seeds": "[1,2]"})
    assert again[0] == scores[0]
    assert len(read_json(tmp_path / "second" / "results.json")["seeds"]) == 2
    with pytest.raises(UserError, match=r"another configuration: training.lr was 0.005, is 0.1"):
        run(place, tmp_path / "second", **{**keys, "training.lr": 0.1})
    with pytest.raises(UserError, match=r"lack decoder.bias"):
        load_model(tmp_path / "first" / "model")


def test_a_learning_rate_that_breaks_the_model_is_said(place, tmp_path):
    config = configure(place, tmp_path / "out", **{"training.clip_norm": 1e30})
    config.training.lr = 1e38  # a file may say no more than 1
    with pytest.raises(UserError, match=r"not finite after \d+ steps: training.lr is too high"):
        finetune(config, Interrupts())


def test_best_keeps_the_epoch_with_the_best_score(place, tmp_path, monkeypatch):
    from restomod.finetune import tasks

    values = iter([0.1, 0.9, 0.2, 0.9])
    saved = []
    monkeypatch.setattr(tasks, "text_scores", lambda *_: {"accuracy": next(values)})
    save = tasks.save_classifier
    monkeypatch.setattr(
        tasks,
        "save_classifier",
        lambda classifier, *rest: (saved.append(classifier), save(classifier, *rest)),
    )
    _, scores = run(place, tmp_path / "out", **{"training.keep": "best"})
    assert scores[0].value == 0.9
    assert read_json(tmp_path / "out" / "seed-17" / "result.json")["epoch"] == 2
    assert len(saved) == 1
    assert not [*(tmp_path / "out" / "seed-17").glob("best*")]


def test_a_grid_keeps_the_best_point_and_goes_on(place, tmp_path):
    """Two tasks in GLUE's columns and layout; the second starts from the first's model."""
    rows = sentences(200)
    for task, columns in (("mnli", ("premise", "hypothesis")), ("rte", ("sentence1", "sentence2"))):
        parts = [{columns[0]: r["text"], columns[1]: "red", "label": r["label"]} for r in rows]
        name = "validation_matched" if task == "mnli" else "validation"
        write(tmp_path / "data" / "glue" / task / "train.jsonl", parts[40:])
        write(tmp_path / "data" / "glue" / task / f"{name}.jsonl", parts[:40])
    grid = {"training.lr": [1e-6, FAST["lr"]]}
    tasks = glue()["tasks"]
    out, data_dir, stop = tmp_path / "out", tmp_path / "data", Interrupts()

    def search(name: str, model: Path):
        settings = {**tasks[name]["finetune"]["settings"], "max_tokens": 64}
        settings["training"] = {**FAST, "epochs": 2}
        return run_grid(name, settings, grid, model, out / name, [1, 2], stop, data_dir)

    for name in ("mnli", "rte"):
        check_data(name, tasks[name]["finetune"]["settings"], tmp_path / "data")
    with pytest.raises(UserError, match=r"task sst2: .*: has no folder sst2; folders there: mnli"):
        check_data("sst2", tasks["sst2"]["finetune"]["settings"], tmp_path / "data")
    first = search("mnli", place / "model")
    assert first.point == {"training.lr": FAST["lr"]}
    assert [score.seed for score in first.scores] == [1, 2]
    assert all(score.value > 0.8 for score in first.scores)
    assert first.tried[0][1] < first.tried[1][1]
    assert [p.parent.name for p in (out / "mnli").glob("*/model")] == ["lr=0.005"]
    assert search("mnli", place / "model") == first  # finds all of it done
    second = search("rte", first.model)
    begun = read_json(second.model.parent / "config.json")
    assert begun["source"] == str(first.model.resolve())
    assert read_json(out / "rte" / "grid.json")["best"] == second.point


def glue() -> dict:
    return yaml.safe_load(Path("yamls/suites/glue.yaml").read_text())


@pytest.mark.parametrize("suite", ["glue", "superglue"])
def test_every_task_of_the_shipped_suites_is_valid(suite):
    content = yaml.safe_load(Path(f"yamls/suites/{suite}.yaml").read_text())
    for name, task in content["tasks"].items():
        section = task["finetune"]
        check_task(name, section["settings"], section["grid"])
        assert np.prod([len(values) for values in section["grid"].values()]) == 48
    with pytest.raises(UserError, match=r"task x: training.lr: -1.0 must be above 0"):
        check_task("x", {"data": {"path": "p"}}, {"training.lr": [1e-5, -1]})
    with pytest.raises(UserError, match="task x: seeds: the suite sets them itself"):
        check_task("x", {"data": {"path": "p"}, "seeds": [1]}, {})


def start(place: Path, out: Path) -> subprocess.Popen:
    words = {"model": place / "model", "out": out, "data.path": place / "sentences.jsonl"}
    words |= {f"training.{key}": value for key, value in FAST.items()}
    words |= {"training.epochs": 8, "training.checkpoint_s": 0, "seeds": "[1,2]"}
    return subprocess.Popen(
        [Path(sys.executable).parent / "restomod", "finetune"]
        + [f"{key}={value}" for key, value in words.items()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_step(out: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        steps = [int(p.name.rpartition("-")[2]) for p in out.glob("seed-1/checkpoint-*")]
        if step <= max(steps, default=0) < 9999:
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint of step {step} came")


@pytest.mark.slow
def test_a_killed_and_an_interrupted_fine_tuning_go_on_with_the_same_command(place, tmp_path):
    out = tmp_path / "out"
    process = start(place, out)
    wait_for_step(out, 10)
    process.kill()
    process.communicate()
    broken = out / "seed-1" / "checkpoint-9999"  # as if killed while it was written
    broken.mkdir()
    process = start(place, out)
    wait_for_step(out, 30)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from" in errors
    assert "SIGINT: stopped and saved after step" in errors
    assert "the same command goes on:\n  restomod finetune model=" in errors
    assert not broken.exists()
    newest = max(int(p.name.rpartition("-")[2]) for p in out.glob("seed-1/checkpoint-*"))
    process = start(place, out)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert f"seed 1: goes on from {out / 'seed-1' / f'checkpoint-{newest}'}" in errors
    results = json.loads((out / "results.json").read_text())
    assert all(seed["value"] > 0.9 for seed in results["seeds"])
    assert read_json(out / "seed-1" / "result.json")["steps"] == 8 * 17
    assert str(out / "model") in printed


def test_a_stop_is_heard_between_steps_and_the_rest_equals_the_unbroken_run(place, tmp_path):
    _, whole = run(place, tmp_path / "whole", **{"training.attention_dropout": 0.1})
    config = configure(place, tmp_path / "parts", **{"training.attention_dropout": 0.1})
    for _ in range(2):
        interrupts = Interrupts()
        interrupts.asked = "SIGTERM"
        with pytest.raises(Stopped, match="SIGTERM: stopped and saved after step"):
            finetune(config, interrupts)
    scores = finetune(config, Interrupts())
    assert scores[0].scores == pytest.approx(whole[0].scores)
    weights = [load_weights(tmp_path / name / "model") for name in ("whole", "parts")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=0, msg=name)


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_mistakes_leave_no_folder_that_refuses_the_corrected_command(place, tmp_path):
    with pytest.raises(UserError, match="has no column labels; it has text, label, score"):
        run(place, tmp_path / "out", **{"columns.label": "labels"})
    _, scores = run(place, tmp_path / "out", **{"training.epochs": 0.2})
    assert len(scores) == 1
    (place / "changed.jsonl").write_text((place / "sentences.jsonl").read_text())
    run(place, tmp_path / "data", "changed.jsonl", **{"training.epochs": 0.2})
    write(place / "changed.jsonl", sentences(300, seed=5))
    keys = {"training.epochs": 0.2, "seeds": "[1,2]"}
    with pytest.raises(UserError, match="was begun with other data"):
        run(place, tmp_path / "data", "changed.jsonl", **keys)
