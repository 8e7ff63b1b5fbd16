"""Held-out loss and accuracy by domain, on fixed rows with fixed masks.

Evaluation reads its rows once, when the run starts, and touches neither the training data's order
nor any generator: losses with and without it are the same.
"""

from __future__ import annotations

import dataclasses

import torch
from composer import Callback, Logger, State
from composer.utils import dist

from restomod.config import PhaseConfig, Recipe
from restomod.data.batch import Batch, collate
from restomod.data.heldout import heldout_rows
from restomod.data.sources import Sources
from restomod.model.encoder import MaskedLM
from restomod.timeline import Timeline
from restomod.train.clock import RunClock
from restomod.train.metrics import MetricsLog
from restomod.train.module import unwrap

Results = dict[str, dict[str, float]]


def heldout_batches(
    recipe: Recipe, phase: PhaseConfig, sources: Sources, rank: int = 0, world_size: int = 1
) -> dict[str, list[Batch]]:
    """Return this rank's micro-batches, of one row each, by domain."""
    phase = dataclasses.replace(
        phase, mask=dataclasses.replace(phase.mask, rate=recipe.evaluation.mask_rate, later=[])
    )
    batches: dict[str, list[Batch]] = {}
    for dataset in sources.heldout.values():
        rows = heldout_rows(
            dataset,
            phase,
            recipe.data,
            sources.tokenizer,
            recipe.seed,
            recipe.evaluation.rows,
        )
        batches.setdefault(dataset.domain, []).extend(
            collate([row], phase, recipe.data, pin_memory=False)
            for n, row in enumerate(rows)
            if n % world_size == rank
        )
    return batches


@torch.no_grad()
def evaluate(model: MaskedLM, batches: dict[str, list[Batch]]) -> Results:
    """Return loss (nats a predicted token), accuracy and number of predictions of each domain, and
    of `all`."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    sums = torch.zeros(len(batches), 3, dtype=torch.float64, device=device)
    for n, domain in enumerate(batches.values()):
        for batch in domain:
            on_device = {
                key: value.to(device) if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
            }
            # Code compiled for training would be compiled once more for evaluation.
            with (
                torch.compiler.set_stance("force_eager"),
                torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
            ):
                sums[n] += torch.stack([part.double() for part in model(on_device)[1:]])
    model.train(training)
    if dist.get_world_size() > 1:
        torch.distributed.all_reduce(sums)
    results = {name: _means(row) for name, row in zip(batches, sums.tolist(), strict=True)}
    return {**results, "all": _means(sums.sum(0).tolist())}


def _means(sums: list[float]) -> dict[str, float]:
    loss, correct, count = sums
    return {
        "loss": loss / max(count, 1),
        "accuracy": correct / max(count, 1),
        "masked_tokens": count,
    }


class Evaluation(Callback):
    """Evaluates every `evaluation.every_steps` steps, when a phase ends, and at the end; on rows of
    the phase's shape."""

    def __init__(
        self,
        recipe: Recipe,
        sources: Sources,
        timeline: Timeline,
        clock: RunClock,
        metrics: MetricsLog,
    ) -> None:
        self._recipe = recipe
        self._sources = sources
        self._timeline = timeline
        self._clock = clock
        self._metrics = metrics
        self._phase = ""
        self._batches: dict[str, list[Batch]] = {}

    def prepare(self, phase: PhaseConfig) -> None:
        """Read the rows of a phase, unless they are there."""
        if phase.name != self._phase:
            self._batches = heldout_batches(
                self._recipe, phase, self._sources, dist.get_global_rank(), dist.get_world_size()
            )
            self._phase = phase.name

    def batch_end(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        due = step % self._recipe.evaluation.every_steps == 0 or self._timeline.ends_phase(step)
        if not due or not self._sources.heldout:
            return
        with self._clock.pause():
            self.prepare(self._timeline.at(step - 1).phase)
            results = evaluate(unwrap(state).model, self._batches)
        self._metrics.write("eval", step=step, phase=self._phase, domains=results)
        logger.log_metrics(
            {f"eval/{d}/{key}": v for d, values in results.items() for key, v in values.items()}
        )
