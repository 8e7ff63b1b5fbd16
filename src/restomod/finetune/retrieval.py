"""Retrieval: our unpadded encoder as a sentence-transformers module, trained by its trainer.

In: anchors, positives and perhaps hard negatives. Out: a `Task` for `run.py`, whose folder plain
sentence-transformers loads with transformers' ModernBERT, and `load_model` as any exported model.

Shapes: N texts, L tokens of the longest, T tokens without padding, D hidden.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.evaluation import InformationRetrievalEvaluator
from sentence_transformers.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.models import InputModule, Pooling
from sentence_transformers.training_args import BatchSamplers
from torch import Tensor, nn
from transformers import Trainer

from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError
from restomod.finetune.backbone import hidden_states, limit, load_backbone, load_own_tokenizer
from restomod.finetune.config import METRICS, FinetuneConfig
from restomod.finetune.data import Table, load_tables, require
from restomod.finetune.examples import warn_of_template
from restomod.finetune.trainer import Scores, training_arguments
from restomod.model.encoder import MaskedLM
from restomod.model.hf import WEIGHTS, save_transformers
from restomod.vectors.texts import Pooling as PoolingName
from restomod.vectors.texts import TextEncoder, pool

POOLING = "1_Pooling"
MODULES = (
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": POOLING, "type": "sentence_transformers.models.Pooling"},
)
"""What a saved folder says it is made of."""


class Unpadded(InputModule):
    """Tokenises, packs, encodes and pools. Token ids are padded between `tokenize` and `forward`,
    since sentence-transformers cuts batches along their first axis; the encoder sees no padding."""

    def __init__(
        self, model: MaskedLM, tokenizer: Tokenizer, max_tokens: int, pooling: PoolingName
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer.backend  # whose special tokens sentence-transformers asks for
        self.encoder = TextEncoder(model, tokenizer, max_tokens=max_tokens)
        self.pooling: PoolingName = pooling

    def tokenize(self, texts: Sequence[str], **kwargs: Any) -> dict[str, Tensor]:
        """Return input_ids and attention_mask [N, L]."""
        ids = [torch.from_numpy(document) for document in self.encoder.ids(texts)]
        mask = [torch.ones_like(document) for document in ids]
        pad_id = float(self.encoder.tokenizer.pad_id)
        return {
            "input_ids": nn.utils.rnn.pad_sequence(ids, True, pad_id),
            "attention_mask": nn.utils.rnn.pad_sequence(mask, True),
        }

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add sentence_embedding [N, D]."""
        mask = features["attention_mask"].bool()
        bounds = nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
        packed = features["input_ids"][mask]
        hidden = hidden_states(self.model, packed, bounds, mask.shape[1]).float()
        features["sentence_embedding"] = pool(hidden, bounds, self.pooling)
        return features

    def get_sentence_embedding_dimension(self) -> int:
        """Return D."""
        return self.model.config.hidden_size

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Checkpoints are the trainer's, results `save_retriever`'s."""
        raise NotImplementedError


class UnpaddedTrainer(SentenceTransformerTrainer):
    """With plain checkpoints (the weights, as transformers' own Trainer writes them), and batches
    that depend on the seed."""

    def get_batch_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Pass the seed on, which theirs leaves at 0 for a single data set."""
        return super().get_batch_sampler(*args, **{**kwargs, "seed": self.args.seed})

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.model.state_dict(), folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / WEIGHTS))

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: it would tokenise all data once more to describe it."""


class RetrievalTask:
    """A `Task` for pairs of queries and documents."""

    def __init__(self, config: FinetuneConfig, model: Path) -> None:
        """Read the data; raise UserError."""
        self.config = config
        self.path = model
        self.tokenizer_folder, self.tokenizer = load_own_tokenizer(model)
        self.max_tokens = limit(self._backbone(0), config.max_tokens)
        warn_of_template(self.tokenizer, False)
        tables = load_tables(config.data)
        columns = config.columns
        names = {"anchor": columns.anchor, "positive": columns.positive}
        names |= {f"negative_{n}": name for n, name in enumerate(columns.negatives, 1)}
        self.train, self.validation = (_texts(table, names) for table in tables)
        self.metric = config.metric or METRICS["retrieval"][0]
        self.digest = _digest(self.train, self.validation)
        self.facts = {
            "train": {"from": tables[0].name, "examples": len(tables[0])},
            "validation": {"from": tables[1].name, "examples": len(tables[1])},
        }
        prompts = config.retrieval
        self.prompts = {
            name: prompts.query_prompt if name == "anchor" else prompts.document_prompt
            for name in names
        }
        self.evaluator = self._evaluator()
        self.facts["validation"] |= {
            "queries": len(self.evaluator.queries),
            "documents": len(self.evaluator.corpus),
        }

    def trainer(self, folder: Path, seed: int) -> Trainer:
        """Return what trains a fresh retriever."""
        training, scale = self.config.training, self.config.retrieval.scale
        pooling = cast(PoolingName, self.config.pooling)
        module = Unpadded(self._backbone(seed), self.tokenizer, self.max_tokens, pooling)
        model = SentenceTransformer(modules=[module], device=_device())
        loss: nn.Module
        if training.micro_batch:
            loss = CachedMultipleNegativesRankingLoss(
                model, scale, mini_batch_size=training.micro_batch
            )
        else:
            loss = MultipleNegativesRankingLoss(model, scale)
        prompts = {name: prompt for name, prompt in self.prompts.items() if prompt}
        arguments = SentenceTransformerTrainingArguments(
            **training_arguments(training, folder, seed),
            per_device_train_batch_size=training.batch_size,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            prompts=prompts or None,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)
        rows = require("datasets").Dataset.from_dict(self.train)
        return UnpaddedTrainer(model, arguments, train_dataset=rows, loss=loss)

    def scores(self, trainer: Trainer) -> Scores:
        """Return what finding each validation query's documents among all of the set's comes to."""
        model = trainer.model
        assert isinstance(model, SentenceTransformer)
        model.eval()
        with torch.autocast("cuda", torch.bfloat16, model.device.type == "cuda"):
            found = self.evaluator(model)
        return {
            "ndcg@10": float(found["cosine_ndcg@10"]),
            "mrr@10": float(found["cosine_mrr@10"]),
            "recall@1": float(found["cosine_recall@1"]),
            "recall@10": float(found["cosine_recall@10"]),
        }

    def save(self, trainer: Trainer, folder: Path) -> None:
        """Write a folder for sentence-transformers."""
        model = trainer.model
        assert isinstance(model, SentenceTransformer)
        module = model[0]
        assert isinstance(module, Unpadded)
        save_retriever(module, folder, self.tokenizer_folder, self.prompts)

    def _backbone(self, seed: int) -> MaskedLM:
        return load_backbone(self.path, self.config.training.attention_dropout, seed)

    def _evaluator(self) -> InformationRetrievalEvaluator:
        """Every query's positives are to be found among the documents of all rows."""
        documents: dict[str, str] = {}
        for name, column in self.validation.items():
            if name != "anchor":
                for text in column:
                    documents.setdefault(text, f"d{len(documents)}")
        queries: dict[str, str] = {}
        relevant: dict[str, set[str]] = {}
        for query, positive in zip(
            self.validation["anchor"], self.validation["positive"], strict=True
        ):
            number = queries.setdefault(query, f"q{len(queries)}")
            relevant.setdefault(number, set()).add(documents[positive])
        return InformationRetrievalEvaluator(
            {number: text for text, number in queries.items()},
            {number: text for text, number in documents.items()},
            relevant,
            precision_recall_at_k=[1, 10],
            accuracy_at_k=[10],
            batch_size=64,
            write_csv=False,
            query_prompt=self.prompts["anchor"] or None,
            corpus_prompt=self.prompts["positive"] or None,
        )


def save_retriever(
    module: Unpadded, folder: Path, tokenizer: Path, prompts: dict[str, str]
) -> None:
    """Write the exported model, and what sentence-transformers wants to know of it."""
    save_transformers(module.model, folder, tokenizer)
    pooling = Pooling(module.model.config.hidden_size, pooling_mode=module.pooling)
    (folder / POOLING).mkdir(exist_ok=True)
    pooling.save(str(folder / POOLING))
    said = {
        "model_type": "SentenceTransformer",
        "prompts": {"query": prompts["anchor"], "document": prompts["positive"]},
        "similarity_fn_name": "cosine",
    }
    files = {
        "modules.json": MODULES,
        "sentence_bert_config.json": {
            "max_seq_length": module.encoder.max_tokens,
            "do_lower_case": False,
        },
        "config_sentence_transformers.json": said,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _texts(table: Table, names: dict[str, str]) -> dict[str, list[str]]:
    columns = {name: table.texts(column) for name, column in names.items()}
    for name, column in columns.items():
        for row, text in enumerate(column, 1):
            if not text.strip():
                raise UserError(f"{table.name}: row {row}: {names[name]} is an empty text")
    return columns


def _digest(*tables: dict[str, list[str]]) -> str:
    digest = hashlib.sha256()
    for table in tables:
        for name, column in table.items():
            digest.update(f"\0{name}\0".encode())
            for text in column:
                digest.update(np.int64(len(text)).tobytes() + text.encode(errors="replace"))
    return digest.hexdigest()[:16]
