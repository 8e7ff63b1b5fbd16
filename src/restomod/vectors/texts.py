"""Texts through the encoder, unpadded: tokenised, sorted by length, packed into batches of so many
tokens, and given back in the order in which they came.

In: a model and its tokenizer, or a folder that holds both. Out: a vector for each text, or one for
each of its tokens. `bulk.py` and everything in `eval/` that needs features calls this.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from restomod.data.tokenizer import Tokenizer, load_tokenizer
from restomod.errors import UserError
from restomod.model.encoder import MaskedLM
from restomod.tools.runs import load_model, tokenizer_folder

Pooling = Literal["mean", "cls"]
BATCH_TOKENS = 16_384
WINDOW_TEXTS = 4_096
"""Texts that are sorted by length together."""


class TextEncoder:
    """A model and its tokenizer, applied to texts."""

    def __init__(
        self,
        model: MaskedLM,
        tokenizer: Tokenizer,
        *,
        max_tokens: int = 0,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        """`max_tokens` cuts each text, [CLS] and [SEP] counted; 0 is the model's own limit. A batch
        holds up to `batch_tokens`, or one longer text.

        Raises UserError if `max_tokens` leaves no room or exceeds what the model was trained for.
        """
        limit = model.config.max_sequence_length
        if not (max_tokens == 0 or 3 <= max_tokens <= limit):
            raise UserError(f"max_tokens {max_tokens}: the model takes 3 to {limit}")
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens or limit
        self.batch_tokens = batch_tokens

    @classmethod
    def load(
        cls, path: str | Path, *, max_tokens: int = 0, batch_tokens: int = BATCH_TOKENS
    ) -> TextEncoder:
        """Load a run, a checkpoint, an average or a transformers folder; on a GPU if there is one.

        Raises UserError if `path` is none of them or has no tokenizer.
        """
        model = load_model(path)
        tokenizer = load_tokenizer(tokenizer_folder(Path(path)))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), tokenizer, max_tokens=max_tokens, batch_tokens=batch_tokens)

    @property
    def hidden_size(self) -> int:
        return self.model.config.hidden_size

    def ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return [CLS], tokens and [SEP] of each text, [length] int64, cut to `max_tokens`."""
        return token_ids(self.tokenizer, texts, self.max_tokens)

    def embed(self, texts: Iterable[str], pooling: Pooling = "mean") -> np.ndarray:
        """Return [texts, hidden] float32: the mean over a text's tokens with [CLS] and [SEP], as
        sentence-transformers takes it, or the vector of [CLS]."""
        texts = iter(texts)
        parts = [np.zeros((0, self.hidden_size), np.float32)]
        while window := list(itertools.islice(texts, WINDOW_TEXTS)):
            parts.append(self.embed_ids(self.ids(window), pooling))
        return np.concatenate(parts)

    def embed_ids(self, ids: list[np.ndarray], pooling: Pooling = "mean") -> np.ndarray:
        """Return [documents, hidden] float32 of what `ids` returns."""
        vectors = np.empty((len(ids), self.hidden_size), np.float32)
        for order, hidden, bounds in self._forward(ids):
            vectors[order] = pool(hidden, bounds, pooling).cpu().numpy()
        return vectors

    def embed_windows(self, texts: Sequence[str]) -> np.ndarray:
        """Return [texts, hidden] float32 of whole texts: what is longer than `max_tokens` is read
        in windows of that length, and the means of their tokens count by their tokens."""
        size = self.max_tokens - 2
        windows, owners = [], []
        for n, ids in enumerate(self.tokenizer.encode_batch(texts)):
            for begin in range(0, max(len(ids), 1), size):
                windows.append(framed(self.tokenizer, ids[begin : begin + size]))
                owners.append(n)
        lengths = np.array([len(ids) for ids in windows], np.float32)
        sums, tokens = np.zeros((len(texts), self.hidden_size), np.float32), np.zeros(len(texts))
        np.add.at(sums, owners, self.embed_ids(windows) * lengths[:, None])
        np.add.at(tokens, owners, lengths)
        return sums / np.maximum(tokens, 1).astype(np.float32)[:, None]

    def embed_tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return [length, hidden] float32 of each text: the vectors of `ids`."""
        vectors: list[np.ndarray] = [np.empty(0)] * len(texts)
        for order, hidden, bounds in self._forward(self.ids(texts)):
            cuts = bounds[1:-1].tolist()
            for place, part in zip(order, np.split(hidden.cpu().numpy(), cuts), strict=True):
                vectors[place] = part
        return vectors

    def _forward(self, ids: list[np.ndarray]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield, batch by batch, which documents it holds, their hidden states [T, D] in float32,
        and where each begins, [documents + 1] int32; the longest first, so that memory that does
        not suffice shows at once."""
        for order in by_length([len(document) for document in ids], self.batch_tokens):
            yield order, *hidden_states(self.model, [ids[n] for n in order])


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
    """Return [CLS], tokens and [SEP] of each text, [length] int64, cut to `max_tokens`."""
    return [framed(tokenizer, ids[: max_tokens - 2]) for ids in tokenizer.encode_batch(texts)]


def framed(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Return [CLS], the ids and [SEP], int64."""
    return np.concatenate([[tokenizer.cls_id], ids.astype(np.int64), [tokenizer.sep_id]])


def hidden_states(model: MaskedLM, documents: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return the hidden states [T, D] of these ids, in float32, and where each document begins,
    [documents + 1] int32; both on the model's device, computed in bfloat16 on a GPU."""
    device = next(model.parameters()).device
    lengths = [len(ids) for ids in documents]
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(device)
    tokens = torch.from_numpy(np.concatenate(documents)).to(device)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, device.type == "cuda"):
        return model.encode(tokens, bounds, max(lengths)).float(), bounds


def by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of all documents, the longest first, in batches of up to `batch_tokens`."""
    batch: list[int] = []
    room = batch_tokens
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if batch and lengths[n] > room:
            yield batch
            batch, room = [], batch_tokens
        batch.append(n)
        room -= lengths[n]
    if batch:
        yield batch


def pool(hidden: Tensor, bounds: Tensor, pooling: Pooling) -> Tensor:
    """Return [documents, D] of hidden states [T, D] and bounds [documents + 1]."""
    starts = bounds[:-1].long()
    if pooling == "cls":
        return hidden[starts]
    lengths = bounds.diff().long()
    documents = torch.repeat_interleave(lengths, output_size=len(hidden))
    sums = hidden.new_zeros(len(lengths), hidden.shape[1]).index_add_(0, documents, hidden)
    return sums / lengths[:, None]
