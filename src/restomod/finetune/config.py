"""The schema of a fine-tuning: a dataclass for each section of its YAML.

In: YAML files and `key=value` overrides. Out: a `FinetuneConfig` whose every key has been checked,
or a UserError that says what is wrong and where. Imports nothing heavy. The learning rate, weight
decay and epochs are of the grid that ModernBERT was tuned in (arXiv 2412.13663, appendix E.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from restomod.strict import load_strict

TASKS = ("classification", "regression", "tokens", "retrieval")
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("spearman", "pearson"),
    "tokens": ("accuracy", "f1", "entity_f1"),
    "retrieval": ("ndcg@10", "mrr@10", "recall@1", "recall@10"),
}
"""What is measured on the validation set; the first counts unless `metric` says otherwise."""
MAJORITY = "majority"
"""What always naming training's most frequent class would score, in results beside the seeds'."""


@dataclass
class DataConfig:
    """Where labelled examples come from."""

    path: str = ""
    """A file (.jsonl, .json, .parquet; .gz or .zst too), a folder of such files named for their
    splits, a folder of `datasets.save_to_disk`, or a data set's name on the hub."""
    subset: str = ""
    """Folder inside `path`, or the configuration of a data set on the hub."""
    train: str = "train"
    """Split to train on; nothing reads it where `path` is a file."""
    validation: str = ""
    """Split or file to measure on; empty takes the split `validation` if there is one, else a share
    of the examples to train on."""
    validation_share: float = 0.1
    """Of the examples to train on, where there is no validation set."""


@dataclass
class ColumnsConfig:
    """Which columns hold what."""

    text: str = "text"
    """The text, or a template: `{title}: {body}`. Classification, regression, tokens by spans."""
    pair: str = ""
    """The second text of a pair, or a template; empty: single texts."""
    label: str = "label"
    """The class (text or whole number), or the number to predict."""
    words: str = "words"
    """Tokens: the words of a text, a list."""
    tags: str = "tags"
    """Tokens: the label of each word, a list."""
    spans: str = ""
    """Tokens: instead of words and tags, a list of {start, end, label} of `text`, in characters;
    words are then found in the text, and tags are B-, I- and O."""
    anchor: str = "anchor"
    """Retrieval: the query."""
    positive: str = "positive"
    """Retrieval: the document that answers it."""
    negatives: list[str] = field(default_factory=list)
    """Retrieval: columns of documents that do not (hard negatives)."""


@dataclass
class TrainingConfig:
    """How weights are fitted."""

    epochs: float = 2.0
    """Passes over the training set."""
    batch_size: int = 32
    """Examples of an optimizer step."""
    micro_batch: int = 0
    """Examples computed at a time, a divisor of batch_size; 0 is all of them. In retrieval the loss
    stays that of the whole batch (cached gradients)."""
    lr: float = 8e-5
    """Largest learning rate."""
    weight_decay: float = 8e-6
    """Fully decoupled, as in pretraining: a step multiplies weights, but norms and biases, by 1 -
    weight_decay x the learning rate's share of its largest."""
    warmup: float = 0.06
    """Share of the steps in which the learning rate rises."""
    schedule: str = field(
        default="linear", metadata={"choices": ("linear", "cosine", "constant_with_warmup")}
    )
    """How the learning rate goes down after that."""
    clip_norm: float = 1.0
    """Largest norm of a step's gradient."""
    attention_dropout: float = 0.0
    """Dropout on the attention's output, as pretraining has it; transformers' class has none."""
    classifier_dropout: float = 0.0
    """Dropout before the classifier."""
    keep: str = field(default="last", metadata={"choices": ("last", "best")})
    """Which weights are saved and scored: those of the end, or of the epoch with the best score.
    `best` chooses on the set that it is measured on."""
    checkpoint_s: float = 120.0
    """Seconds of training between checkpoints, from which a stopped run goes on."""


@dataclass
class RetrievalConfig:
    """What only retrieval has."""

    scale: float = 20.0
    """Cosines are multiplied by it in the loss (1 / temperature)."""
    query_prompt: str = ""
    """Put before each query, as "search_query: "."""
    document_prompt: str = ""
    """Put before each document."""


@dataclass
class FinetuneConfig:
    """One fine-tuning, with one or several seeds."""

    model: str = ""
    """A run, a checkpoint, an average, a transformers folder, or the model/ of another
    fine-tuning."""
    out: str = ""
    """Folder to write."""
    task: str = field(default="classification", metadata={"choices": TASKS})
    """classification, regression (each of texts or pairs), tokens or retrieval."""
    data: DataConfig = field(default_factory=DataConfig)
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    max_tokens: int = 0
    """Longer texts are cut, [CLS] and [SEP] counted; 0 is the model's own limit."""
    pooling: str = field(default="mean", metadata={"choices": ("mean", "cls")})
    """What stands for a text: the mean over its tokens, or [CLS]."""
    metric: str = ""
    """Score that counts; empty takes the task's first: accuracy, spearman, ndcg@10, and for tokens
    entity_f1 where tags are B-, I- and O."""
    seeds: list[int] = field(default_factory=lambda: [17])
    """One run each: of the classifier's first weights, the order of examples and dropout."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)


def load_finetune(paths: list[str | Path], overrides: list[str]) -> FinetuneConfig:
    """Read and check a fine-tuning; raise UserError."""
    return load_strict(paths, overrides, FinetuneConfig, impossible)


def impossible(config: FinetuneConfig) -> list[tuple[str, str]]:
    """Return (key, reason) of what cannot work, whatever the data."""
    training, columns = config.training, config.columns
    problems = [
        (key, f"is missing; {what}")
        for key, value, what in (
            ("model", config.model, "name a run, a checkpoint or a transformers folder"),
            ("out", config.out, "name a folder to write"),
            ("data.path", config.data.path, "name a file, a folder or a data set of the hub"),
        )
        if not value
    ]
    positive = {"epochs": training.epochs, "batch_size": training.batch_size, "lr": training.lr}
    positive |= {"clip_norm": training.clip_norm}
    problems += [
        (f"training.{name}", f"{value} must be above 0")
        for name, value in positive.items()
        if value <= 0
    ]
    problems += [
        (f"training.{name}", f"{value} is above {most:,}")
        for name, value, most in (("lr", training.lr, 1), ("epochs", training.epochs, 100_000))
        if value > most
    ]
    shares = {
        "training.warmup": training.warmup,
        "training.attention_dropout": training.attention_dropout,
        "training.classifier_dropout": training.classifier_dropout,
    }
    problems += [
        (key, f"{value} must be at least 0 and below 1")
        for key, value in shares.items()
        if not 0 <= value < 1
    ]
    if not 0 < config.data.validation_share < 1:
        problems.append(("data.validation_share", "must be between 0 and 1"))
    if not 0 <= training.weight_decay < 1:
        problems.append(("training.weight_decay", "must be at least 0 and below 1"))
    if training.checkpoint_s < 0:
        problems.append(("training.checkpoint_s", "must be at least 0"))
    if training.micro_batch < 0 or (
        training.micro_batch and training.batch_size % training.micro_batch
    ):
        problems.append(
            (
                "training.micro_batch",
                f"{training.micro_batch} does not divide batch_size {training.batch_size}",
            )
        )
    if config.max_tokens != 0 and config.max_tokens < 4:
        problems.append(("max_tokens", f"{config.max_tokens} leaves no room; 4 is the least"))
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        problems.append(("seeds", "must be one or more different whole numbers"))
    if any(not 0 <= seed < 2**32 for seed in config.seeds):
        problems.append(("seeds", "must lie in 0 .. 2^32 - 1"))
    if config.metric and config.metric not in METRICS.get(config.task, ()):
        known = ", ".join(METRICS[config.task])
        problems.append(("metric", f"{config.metric!r} is not measured here; there is {known}"))
    if columns.pair and config.task not in ("classification", "regression"):
        problems.append(("columns.pair", f"nothing reads it in the task {config.task}"))
    if columns.negatives and config.task != "retrieval":
        problems.append(("columns.negatives", f"nothing reads it in the task {config.task}"))
    if columns.spans and config.task != "tokens":
        problems.append(("columns.spans", f"nothing reads it in the task {config.task}"))
    if config.task == "retrieval" and training.classifier_dropout:
        problems.append(("training.classifier_dropout", "retrieval has no classifier"))
    if config.retrieval.scale <= 0:
        problems.append(("retrieval.scale", "must be above 0"))
    return problems
