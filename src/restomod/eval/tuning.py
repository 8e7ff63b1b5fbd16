"""A minute of contrastive tuning: what pretraining is worth to a model that is tuned afterwards.

In: a model, pairs of texts that belong together. Out: a tuned copy. An encoder trained on masked
tokens alone is no text encoder yet: its mean vectors hardly differ from text to text. The paper
tunes each model on MS MARCO before it scores retrieval (section 3.1.2); this does so with what is
installed. `run.py` calls it; `restomod finetune` is for real tuning.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from restomod.data.random import keyed_generator
from restomod.eval.suite import TuneConfig
from restomod.model.encoder import MaskedLM
from restomod.vectors.texts import TextEncoder, pool

log = logging.getLogger(__name__)

WARMUP = 0.1


def tuned(
    texts: TextEncoder, queries: Sequence[str], documents: Sequence[str], how: TuneConfig, seed: int
) -> TextEncoder:
    """Return a copy tuned so that each query is nearer to its own document than to the others of
    the batch, and the other way round (InfoNCE, both ways)."""
    model = copy.deepcopy(texts.model).train()
    reader = TextEncoder(model, texts.tokenizer, max_tokens=min(how.max_tokens, texts.max_tokens))
    generator = keyed_generator(seed, "tuning")
    sides = [reader.ids(queries), reader.ids(documents)]
    parameters = [p for name, p in model.named_parameters() if not name.startswith("head.")]
    optimizer = torch.optim.AdamW(parameters, lr=how.lr, betas=(0.9, 0.98), weight_decay=0.01)
    order: list[int] = []
    for step in range(how.steps):
        if len(order) < how.batch:
            order = generator.permutation(len(queries)).tolist()
        batch, order = order[: how.batch], order[how.batch :]
        rise = (step + 1) / (WARMUP * how.steps)
        for group in optimizer.param_groups:
            group["lr"] = how.lr * min(1.0, rise) * (1 - step / how.steps)
        own, other = (_vectors(model, [side[n] for n in batch]) for side in sides)
        similar = own @ other.T / how.temperature
        target = torch.arange(len(batch), device=similar.device)
        loss = (F.cross_entropy(similar, target) + F.cross_entropy(similar.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    log.info("tuned %d steps, seed %d: loss %.3f at the end", how.steps, seed, loss.item())
    return TextEncoder(
        model.eval(), texts.tokenizer, max_tokens=texts.max_tokens, batch_tokens=texts.batch_tokens
    )


def _vectors(model: MaskedLM, ids: list[np.ndarray]) -> Tensor:
    lengths = [len(document) for document in ids]
    device = next(model.parameters()).device
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    hidden = model.encode(torch.from_numpy(np.concatenate(ids)).to(device), bounds, max(lengths))
    return F.normalize(pool(hidden, bounds, "mean"), dim=1)
