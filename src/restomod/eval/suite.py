"""A suite: which tasks a model is judged on, and what stands beside it.

In: a YAML file, or the name of one of yamls/suites. Out: a `Suite` whose every key has been
checked, or a UserError that says what is wrong and where. Imports nothing heavy. `run.py` runs it.

The files lie in yamls/suites; `suites` beside this module is a link to that folder, and its files
are part of the package, so that names are known wherever it is installed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.strict import load_strict

SUITES = Path(__file__).with_name("suites")
OFFLINE_RETRIEVAL = ("functions", "functions-named", "sections", "long")
BASELINES = ("random", "bag", "tfidf", "minilm")
TREATMENTS = ("whitened", "probe")


@dataclass
class RetrievalTask:
    """Documents ranked by the cosine of single vectors."""

    offline: str = field(default="", metadata={"choices": ("", *OFFLINE_RETRIEVAL)})
    """What is built out of installed packages that the model was not trained on: functions
    (docstring to code without the function's name), functions-named (with it), sections (heading
    to body), long (a docstring to the file it was cut from)."""
    folder: str = ""
    """Or a folder as BEIR lays it out: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv."""
    split: str = "test"
    """Of the folder."""
    reverse: bool = False
    """Whether documents ask for queries; of offline tasks."""
    most: int = 1000
    """Queries, at most; of offline tasks."""
    whole: bool = False
    """Whether documents beyond the model's limit are read in windows, whose mean counts, rather
    than cut."""
    optional: bool = False
    """Whether the task is left out, and said to be, where its folder is not there."""


@dataclass
class ClassificationTask:
    """Logistic regression on frozen features."""

    offline: str = field(default="", metadata={"choices": ("", "origin")})
    """origin: which package a function comes from, other files of it being known."""
    folder: str = ""
    """Or a folder: train.jsonl and test.jsonl of {"text", "label"}, or .txt files in folders named
    for their labels, of which a third is for the test."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels of the folders whose names are none."""
    most: int = 2000
    """Texts of each part, at most."""
    optional: bool = False
    """Whether the task is left out, and said to be, where its folder is not there."""


@dataclass
class MtebTask:
    """A retrieval task of the mteb library, with its own protocol and scores."""

    name: str = ""
    """As mteb knows it, for instance SciFact."""
    folder: str = ""
    """Where its data lies as BEIR lays it out, below `data_dir`; NAME by default. Where the folder
    is missing, mteb loads from the hub."""
    style: str = field(default="single", metadata={"choices": ("single", "late")})
    """single: one vector a text, by cosine; late: one a token, by MaxSim, as ColBERT."""
    subset: str = "default"
    """Of a task with languages."""
    split: str = "test"
    """Which queries are judged."""


@dataclass
class FinetuneTask:
    """A fine-tuning on labelled data, scored on its validation set."""

    settings: dict[str, Any] = field(default_factory=dict)
    """As `restomod finetune` takes them, without `model`, `out` and `seeds`."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Settings (`training.lr`) and the values to try; the best combination on the first seed is
    run with all seeds."""
    starts_from: str = ""
    """Task of this suite whose tuned model this one begins with, as MRPC with MNLI's."""


@dataclass
class SuiteTask:
    """One task: exactly one of its sections is given."""

    retrieval: RetrievalTask | None = None
    classification: ClassificationTask | None = None
    mteb: MtebTask | None = None
    finetune: FinetuneTask | None = None


KINDS = ("retrieval", "classification", "mteb", "finetune")


@dataclass
class ProbeConfig:
    """How the probe learns: a linear map of frozen features, for queries and for documents."""

    pairs: int = 4000
    """Pairs of docstring and code that whitening and probe are fitted on, at most."""
    steps: int = 300
    """Most steps; training ends where pairs that it does not see are served best."""
    batch: int = 256
    """Pairs of a step; the others' codes are the negatives."""
    lr: float = 1e-3
    """Learning rate."""
    temperature: float = 0.05
    """Cosines are divided by it."""


@dataclass
class Suite:
    """What a model is judged on."""

    name: str = ""
    """The file's own by default."""
    description: str = ""
    """What it is for; the results begin with it."""
    note: str = ""
    """What a reader of the scores must know; the results say it."""
    tasks: dict[str, SuiteTask] = field(default_factory=dict)
    data_dir: str = "data/suites"
    """Folder that relative `folder`s lie in."""
    cache_dir: str = "cache"
    """Where built tasks are kept."""
    corpus: str = ""
    """Corpus of data_prep/harvest.py that says what was held out; found by the run if empty."""
    site_packages: list[str] = field(default_factory=list)
    """Folders whose packages offline tasks are built from; the running Python's if empty."""
    max_tokens: int = 0
    """Longer texts are cut, [CLS] and [SEP] counted; 0, or more than the model was trained for, is
    the model's own limit."""
    baselines: list[str] = field(default_factory=list)
    """random (the same architecture, one model a seed), bag (means of the model's embeddings),
    tfidf, minilm (a small pretrained encoder)."""
    treatments: list[str] = field(default_factory=list)
    """What is also done to untuned features of the model and of random initialisation: whitened,
    probe. Fitted on packages that are in no task (the run's training packages, if known)."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    seeds: int = 3
    """Seeds of random initialisation."""


def load_suite(name: str) -> Suite:
    """Read a suite by its file or its name; raise UserError."""
    path = find_suite(name)
    suite = load_strict([path], [], Suite, _impossible)
    suite.name = suite.name or path.stem
    return suite


def find_suite(name: str) -> Path:
    """Return the file of a suite. Raises UserError naming those that there are."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"--suite {name}: no such file")
        return path
    path = SUITES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in SUITES.glob("*.yaml")))
        raise UserError(f"--suite {name}: there is {known}; or give a file, NAME.yaml")
    return path


def _impossible(suite: Suite) -> list[tuple[str, str]]:
    """Return (key, reason) for what cannot work."""
    bad = []
    if not suite.tasks:
        bad.append(("tasks", "is missing: what the model is judged on"))
    for n, name in enumerate(suite.baselines):
        if name not in BASELINES:
            bad.append((f"baselines.{n}", f"{name!r} is not one of {', '.join(BASELINES)}"))
    if "tfidf" in suite.baselines and any(task.mteb for task in suite.tasks.values()):
        bad.append(("baselines", "tfidf reads all documents at once: `retrieval: {folder: ...}`"))
    if not 1 <= suite.seeds <= 1000:
        bad.append(("seeds", "must be at least 1, and at most 1,000"))
    if suite.max_tokens != 0 and suite.max_tokens < 8:
        bad.append(("max_tokens", f"{suite.max_tokens} leaves no room; 8 is the least"))
    for n, name in enumerate(suite.treatments):
        if name not in TREATMENTS:
            bad.append((f"treatments.{n}", f"{name!r} is not one of {', '.join(TREATMENTS)}"))
    for key in ("pairs", "steps", "batch", "lr", "temperature"):
        if getattr(suite.probe, key) <= 0:
            bad.append((f"probe.{key}", "must be positive"))
    for name, task in suite.tasks.items():
        bad += [(f"tasks.{name}{key}", reason) for key, reason in _impossible_task(task)]
        first = suite.tasks.get(task.finetune.starts_from) if task.finetune else None
        if task.finetune and task.finetune.starts_from and (not first or not first.finetune):
            key = f"tasks.{name}.finetune.starts_from"
            bad.append((key, f"{task.finetune.starts_from!r} is no fine-tuning of this suite"))
    return bad


def _impossible_task(task: SuiteTask) -> list[tuple[str, str]]:
    given = [kind for kind in KINDS if getattr(task, kind) is not None]
    if len(given) != 1:
        return [("", f"give one of {', '.join(KINDS)}")]
    bad = []
    for kind in ("retrieval", "classification"):
        section = getattr(task, kind)
        if section is None:
            continue
        if bool(section.offline) == bool(section.folder):
            bad.append((f".{kind}", "give `offline` or `folder`"))
        if section.most < 2:
            bad.append((f".{kind}.most", "must be at least 2"))
        if section.optional and not section.folder:
            bad.append((f".{kind}.optional", "nothing reads it without a folder"))
    if task.retrieval and task.retrieval.reverse and not task.retrieval.offline:
        bad.append((".retrieval.reverse", "nothing reads it without `offline`"))
    if task.mteb and not task.mteb.name:
        bad.append((".mteb.name", "is missing: a task as mteb knows it"))
    if task.finetune and not task.finetune.settings:
        bad.append((".finetune.settings", "is missing: as `restomod finetune` takes them"))
    return bad
