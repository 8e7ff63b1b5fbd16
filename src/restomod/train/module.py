"""The encoder as Composer sees it, with a loss that is the mean over the global batch's masked
tokens.

In: a micro-batch. Out: its loss, scaled so that what Composer and DDP average is that mean.
`builder.py` builds it.
"""

from __future__ import annotations

from typing import Any

import torch
from composer import Callback, ComposerModel, Logger, State
from composer.utils import dist

from restomod.data.batch import Batch
from restomod.model.encoder import MaskedLM
from restomod.model.loss import IGNORED


class TrainedModel(ComposerModel):
    """`MaskedLM`, the scale of its loss, and the sums of the current step.

    `forward` returns the micro-batch's loss sum. Composer weighs micro-batches by their rows and
    DDP averages over ranks, so `loss_scale` = ranks x micro-batches / masked tokens of the global
    batch makes the gradient that of the mean.
    """

    def __init__(self, model: MaskedLM) -> None:
        super().__init__()
        self.model = model
        self.loss_scale = torch.tensor(0.0)
        self.sums = torch.zeros(3)
        """Loss sum, right predictions and predictions of this rank's micro-batches of the step."""

    def forward(self, batch: Batch) -> torch.Tensor:
        sums = self.model(batch)
        if self.training:
            self.sums += torch.stack([sums.loss, sums.correct, sums.predictions]).float()
        return sums.objective

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return outputs * self.loss_scale


class GlobalMean(Callback):
    """Sets the loss scale of each step from the masked tokens of all ranks, without a host sync."""

    def batch_start(self, state: State, logger: Logger) -> None:
        module = unwrap(state)
        micro_batches: list[dict[str, Any]] = state.batch
        device = next(module.parameters()).device
        masked = sum((batch["labels"] != IGNORED).sum() for batch in micro_batches)
        total = torch.as_tensor(masked).to(device, torch.float32)
        if dist.get_world_size() > 1:
            torch.distributed.all_reduce(total)
        module.loss_scale = dist.get_world_size() * len(micro_batches) / total.clamp(min=1)
        module.sums = torch.zeros(3, device=device)


def unwrap(state: State) -> TrainedModel:
    """Return our module out of whatever Composer wrapped it in."""
    model: Any = state.model
    return getattr(model, "module", model)
