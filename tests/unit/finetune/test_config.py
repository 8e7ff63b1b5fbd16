from pathlib import Path

import pytest
import yaml

from restomod.errors import UserError
from restomod.finetune.config import load_finetune

LEAST = ["model=m", "out=o", "data.path=d"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=o"], "model: is missing"),
        ([*LEAST, "training.lr=0"], "training.lr: 0.0 must be above 0"),
        ([*LEAST, "training.learning_rate=1"], "unknown key"),
        ([*LEAST, "training.micro_batch=5"], "5 does not divide batch_size 32"),
        ([*LEAST, "task=ner"], "'ner' is not one of classification, regression"),
        ([*LEAST, "metric=spearman"], "'spearman' is not measured here; there is accuracy"),
        ([*LEAST, "seeds=[1,1]"], "seeds: must be one or more different"),
        ([*LEAST, "seeds=[-1]"], "seeds: must lie in 0"),
        ([*LEAST, "seeds=[4294967296]"], "seeds: must lie in 0"),
        ([*LEAST, "training.lr=2"], "training.lr: 2.0 is above 1"),
        ([*LEAST, "training.epochs=1e9"], "training.epochs: 1000000000.0 is above 100,000"),
        ([*LEAST, "task=1"], "1 is not one of classification, regression"),
        ([*LEAST, "task=tokens", "columns.pair=b"], "nothing reads it in the task tokens"),
        ([*LEAST, "columns.negatives=[n]"], "nothing reads it in the task classification"),
        ([*LEAST, "columns.spans=s"], "nothing reads it in the task classification"),
        ([*LEAST, "training.warmup=1"], "training.warmup: 1.0 must be at least 0 and below 1"),
        ([*LEAST, "max_tokens=3"], "3 leaves no room"),
        ([*LEAST, "retrieval.scale=0"], "must be above 0"),
        ([*LEAST, "data.validation_share=1"], "must be between 0 and 1"),
        ([*LEAST, "training.weight_decay=1"], "below 1"),
        ([*LEAST, "training.checkpoint_s=-1"], "must be at least 0"),
        ([*LEAST, "task=retrieval", "training.classifier_dropout=.1"], "has no classifier"),
    ],
)
def test_what_cannot_work_is_refused_by_name(words, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        load_finetune([], words)


EXAMPLES = sorted(Path("yamls/finetune").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_shipped_example_is_valid(path):
    config = load_finetune([path], [])
    assert config.out.startswith("runs/")
    assert yaml.safe_load(path.read_text())["task"] == config.task


def test_there_is_an_example_of_every_task():
    assert {load_finetune([path], []).task for path in EXAMPLES} == {
        "classification", "regression", "tokens", "retrieval",
    }  # fmt: skip
