"""Retrieval tasks of the mteb library: its data sets, protocol and scores, our vectors.

In: a task as mteb knows it, and systems. Out: `TaskScores`, nDCG@10 of every query as mteb computes
it. `run.py` calls this. Data comes from a folder as BEIR lays it out, or from the hub.

Single vectors are ranked by cosine. Late interaction is exact MaxSim, as ColBERT's: the sum over a
query's tokens of the best cosine among a document's. A folder of PyLate's is read by PyLate; any
other model's token vectors are taken as they are, which nothing trained for this.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from restomod.errors import UserError
from restomod.eval.encoders import Reading, System, TokenEncoder
from restomod.eval.folders import read_beir
from restomod.eval.items import digest
from restomod.eval.results import TaskScores
from restomod.eval.retrieval import unit
from restomod.eval.suite import MtebTask, Suite

BLOCK = 2_000
"""Documents whose vectors are in memory at a time."""
HUB_TIMEOUT_S = 5
METRICS = {"ndcg_cut_10": "ndcg_at_10", "recall_100": "recall_at_100", "map_cut_100": "map_at_100"}

Similar = Callable[[list[str], Sequence[str]], np.ndarray]
"""(queries, documents) -> their similarities, [queries, documents]."""


class MissingData(UserError):
    """A task's data set is not here: the suite goes on without it if others are."""


def run_mteb(name: str, task: MtebTask, suite: Suite, systems: Sequence[System]) -> TaskScores:
    """Score one mteb task. Raises MissingData where its data is neither on disk nor to be had."""
    folder = Path(suite.data_dir) / (task.folder or task.name)
    if not folder.is_dir() and not _hub_answers() and not _anything_cached():
        raise _missing(folder, task, "the hub does not answer")
    import mteb

    try:
        judged: Any = mteb.get_task(task.name)
    except KeyError:
        raise UserError(f"tasks.{name}.mteb.name: mteb knows no {task.name}") from None
    source = _load(judged, task, folder)
    scores: dict[str, dict[str, np.ndarray]] = {}
    for system in systems:
        if task.style == "late":
            similar = [_by_tokens(encode) for encode in system.tokens]
        else:
            similar = [_by_vectors(encoder) for encoder in system.encoders]
        seeds = [_judge(judged, task, one) for one in similar]
        if seeds:
            scores[system.name] = {m: np.stack([s[m] for s in seeds]) for m in seeds[0]}
    if not scores:
        raise UserError(f"tasks.{name}: no model here has what style {task.style} needs")
    data = judged.dataset[task.subset][task.split]
    about = {
        "task": task.name,
        "subset": task.subset,
        "split": task.split,
        "style": task.style,
        "folder": source,
        "documents": len(data["corpus"]),
        "fingerprint": digest([list(data["queries"]["id"]), list(data["corpus"]["id"])]),
    }
    return TaskScores(name, "mteb", about, [], scores)


def _load(judged: Any, task: MtebTask, folder: Path) -> str:
    """Give mteb's task its data, from the folder or from the hub; return where it came from."""
    if not folder.is_dir():
        _from_hub(judged, task, folder)
        return f"hub: {judged.metadata.dataset['path']}"
    from datasets import Dataset

    documents, queries, grades = read_beir(folder, task.split)
    corpus = {"id": list(documents), "text": list(documents.values())}
    asked = {"id": list(queries), "text": list(queries.values())}
    data = {
        "corpus": Dataset.from_dict(corpus),
        "queries": Dataset.from_dict(asked),
        "relevant_docs": grades,
        "top_ranked": None,
    }
    judged.dataset = {task.subset: {task.split: data}}
    judged.data_loaded = True
    return str(folder)


def _from_hub(judged: Any, task: MtebTask, folder: Path) -> None:
    """Load by mteb; where the hub does not answer, only what its cache holds is looked for, and no
    download is tried again and again."""
    import datasets
    from huggingface_hub import constants

    offline = not _hub_answers()
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline
        judged.hf_subsets = [task.subset]
        judged.filter_eval_splits([task.split])
        judged.load_data()
        judged.convert_v1_dataset_format_to_v2(num_proc=None)
    except Exception as error:  # each library raises its own
        why = "the hub does not answer" if offline else str(error).partition("\n")[0]
        raise _missing(folder, task, why) from error
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _missing(folder: Path, task: MtebTask, why: str) -> MissingData:
    return MissingData(
        f"{folder}: no such folder, and {task.name} cannot be loaded from the hub ({why}). Put "
        f"corpus.jsonl, queries.jsonl and qrels/{task.split}.tsv there, as BEIR lays them out, or "
        "run where the hub can be reached"
    )


@functools.cache
def _hub_answers() -> bool:
    """Return whether the hub may be asked and answers; it is asked once, for a few seconds."""
    import requests
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        requests.head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except requests.RequestException:
        return False
    return True


def _anything_cached() -> bool:
    """Return whether any data set was ever loaded from the hub here."""
    from huggingface_hub import constants

    return any(Path(constants.HF_HUB_CACHE).glob("datasets--*"))


def _judge(judged: Any, task: MtebTask, similar: Similar) -> dict[str, np.ndarray]:
    """Let mteb search and score; return its metrics of every query."""
    of_queries: dict[str, dict[str, float]] = {}

    def keep(scores: dict[str, dict[str, float]], *_: Any, **__: Any) -> dict[str, float]:
        of_queries.update(scores)  # mteb's own hook for a task's further scores
        return {}

    judged.task_specific_scores = keep
    judged.evaluate(Search(similar), task.split, subsets_to_run=[task.subset], encode_kwargs={})
    names = sorted(of_queries)
    return {
        ours: np.array([of_queries[name][theirs] for name in names])
        for theirs, ours in METRICS.items()
    }


class Search:
    """What mteb calls to search with (its SearchProtocol)."""

    def __init__(self, similar: Similar) -> None:
        self._similar = similar
        self._corpus: Any = None

    def index(self, corpus: Any, **_: Any) -> None:
        """Remember the documents."""
        self._corpus = corpus

    def search(
        self, queries: Any, *, top_k: int, top_ranked: Any = None, **_: Any
    ) -> dict[str, dict[str, float]]:
        """Return the best documents of each query with their similarity, {query: {document: s}}."""
        texts = list(queries["text"])
        best: dict[str, dict[str, float]] = {name: {} for name in queries["id"]}
        for names, documents in _blocks(self._corpus):
            similar = self._similar(texts, documents)
            for row, name in zip(similar, best, strict=True):
                allowed = None if top_ranked is None else set(top_ranked.get(name, ()))
                found = {
                    names[n]: float(row[n])
                    for n in np.argsort(-row, kind="stable")[: top_k if allowed is None else None]
                    if allowed is None or names[n] in allowed
                }
                merged = sorted({**best[name], **found}.items(), key=lambda x: -x[1])[:top_k]
                best[name] = dict(merged)
        return best

    @property
    def mteb_model_meta(self) -> Any:
        """Return what mteb asks of a model: nothing here reads it."""
        return importlib.import_module("mteb.models.model_meta").ModelMeta.create_empty()


def _blocks(corpus: Any) -> Iterator[tuple[list[str], list[str]]]:
    for begin in range(0, len(corpus), BLOCK):
        part = corpus[begin : begin + BLOCK]
        titles = part.get("title") or itertools.repeat("")
        pairs = zip(titles, part["text"], strict=False)
        yield part["id"], [f"{title or ''} {text}".strip() for title, text in pairs]


def _by_vectors(encoder: Any) -> Similar:
    def similar(queries: list[str], documents: Sequence[str]) -> np.ndarray:
        asked = encoder.encode(queries, Reading(query=True))
        found = encoder.encode(documents, Reading(keep=False))
        return unit(asked) @ unit(found).T

    return similar


def _by_tokens(encode: TokenEncoder) -> Similar:
    def similar(queries: list[str], documents: Sequence[str]) -> np.ndarray:
        return max_sim(encode(queries, True), encode(documents, False))

    return similar


def max_sim(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sums over a query's tokens of the best cosine among a document's tokens, [queries,
    documents], of token vectors [length, features]."""
    starts = np.cumsum([0, *(len(d) for d in documents)])[:-1]
    tokens = unit(np.concatenate(documents)).T
    rows = [np.maximum.reduceat(unit(q) @ tokens, starts, axis=1).sum(0) for q in queries]
    return np.stack(rows)
