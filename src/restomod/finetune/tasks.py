"""Classification, regression and word labels: what a seed trains and how it is scored and saved.

In: the configuration, the pretrained model's folder and the data. Out: a `Task`, which `run.py`
drives; `retrieval.py` has the other one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from restomod.finetune.backbone import limit, load_backbone, load_own_tokenizer
from restomod.finetune.classifier import Classifier, save_classifier
from restomod.finetune.config import MAJORITY, METRICS, FinetuneConfig
from restomod.finetune.data import load_tables
from restomod.finetune.examples import Example, make_examples, pack, warn_of_template
from restomod.finetune.metrics import (
    has_entities,
    majority_scores,
    number_scores,
    text_scores,
    word_scores,
)
from restomod.finetune.trainer import Scores, training_arguments
from restomod.vectors.texts import Pooling


class Task(Protocol):
    """What `run.py` needs of a task."""

    metric: str
    """The score that counts."""
    digest: str
    """A fingerprint of the examples."""
    facts: dict[str, Any]
    """What results say of the data."""

    def trainer(self, folder: Path, seed: int) -> Trainer:
        """Return what trains a fresh model."""

    def scores(self, trainer: Trainer) -> Scores:
        """Return the metrics of the trainer's model on the validation set."""

    def save(self, trainer: Trainer, folder: Path) -> None:
        """Write the trainer's model."""


class ClassifierTask:
    """A `Task` for labels of texts, of pairs or of words."""

    def __init__(self, config: FinetuneConfig, model: Path) -> None:
        """Read the data; raise UserError."""
        self.config = config
        self.path = model
        self.tokenizer_folder, tokenizer = load_own_tokenizer(model)
        max_tokens = limit(self._backbone(0), config.max_tokens)
        warn_of_template(tokenizer, bool(config.columns.pair))
        tables = load_tables(config.data)
        self.data = make_examples(*tables, config, tokenizer, max_tokens)
        self.digest = self.data.digest()
        entities = config.task == "tokens" and has_entities(self.data.names)
        self.metric = config.metric or ("entity_f1" if entities else METRICS[config.task][0])
        train, validation = (
            {"from": table.name, "examples": len(examples)}
            for table, examples in zip(tables, (self.data.train, self.data.validation), strict=True)
        )
        if config.task == "tokens":
            firsts = np.concatenate([example.firsts for example in self.data.validation])
            validation["words"] = len(firsts)
            validation["words_without_token"] = int((firsts < 0).sum())
        self.facts = {"train": train, "validation": validation, "labels": self.data.names}
        if self.data.names:
            self.facts[MAJORITY] = majority_scores(self.data)

    def trainer(self, folder: Path, seed: int) -> Trainer:
        """Return what trains a fresh classifier."""
        training = self.config.training
        micro_batch = training.micro_batch or training.batch_size
        arguments = TrainingArguments(
            **training_arguments(training, folder, seed),
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=training.batch_size // micro_batch,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # a packed batch cannot be cut along its tokens
        classifier = Classifier(
            self._backbone(seed),
            self.data.names,
            words=self.config.task == "tokens",
            pooling=cast(Pooling, self.config.pooling),
            dropout=training.classifier_dropout,
            seed=seed,
        )
        examples = cast("Dataset[Example]", self.data.train)
        return Trainer(classifier, arguments, data_collator=pack, train_dataset=examples)

    def scores(self, trainer: Trainer) -> Scores:
        """Return the metrics on the validation set."""
        validation = self.data.validation
        logits = _classifier(trainer).predict(validation)
        if self.config.task == "tokens":
            return word_scores(self.data, logits)
        score = text_scores if self.data.names else number_scores
        return score(validation, logits)

    def save(self, trainer: Trainer, folder: Path) -> None:
        """Write a folder for AutoModelForSequenceClassification or ...TokenClassification."""
        save_classifier(_classifier(trainer), folder, self.tokenizer_folder)

    def _backbone(self, seed: int) -> Any:
        return load_backbone(self.path, self.config.training.attention_dropout, seed)


def _classifier(trainer: Trainer) -> Classifier:
    assert isinstance(trainer.model, Classifier)
    return trainer.model
