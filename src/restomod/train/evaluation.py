"""Held-out loss and accuracy by domain, on fixed rows with fixed masks; probes of the features; and
guesses at words that are hidden in fixed passages.

Evaluation reads its rows once for each phase, and touches neither the training data's order
nor any generator: losses with and without it are the same.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist

from restomod.config import PhaseConfig, Recipe
from restomod.data.batch import Batch, collate
from restomod.data.heldout import heldout_rows
from restomod.data.sources import Sources
from restomod.eval.fill_mask import guess, hidden_words
from restomod.eval.probe import Probe
from restomod.extensions import make
from restomod.model.encoder import MaskedLM
from restomod.model.loss import IGNORED
from restomod.train.clock import RunClock
from restomod.train.metrics import MetricsLog
from restomod.train.module import unwrap
from restomod.train.parallel import reshard
from restomod.train.phases import enter
from restomod.train.start import Start

log = logging.getLogger(__name__)
Results = dict[str, dict[str, float]]
MAIN = "main"
"""The view that has `evaluation.mask_rate` and the phase's sequence length."""


class Abandoned(Exception):
    """An evaluation that was not finished, since the run stops."""


def views(recipe: Recipe, phase: PhaseConfig) -> dict[str, PhaseConfig]:
    """Return the shapes in which held-out documents are read: MAIN; `mask_0.3` for each further
    mask rate; `length_8192` for each further sequence length."""

    def view(rate: float, length: int) -> PhaseConfig:
        return dataclasses.replace(
            phase,
            mask=dataclasses.replace(phase.mask, rate=rate, later=[]),
            sequence_length=length,
            row_tokens=max(phase.row_tokens, length),
        )

    config, length = recipe.evaluation, phase.sequence_length
    found = {MAIN: view(config.mask_rate, length)}
    if phase.objective == "mlm":
        found |= {f"mask_{rate:g}": view(rate, length) for rate in config.mask_rates}
    others = (other for other in config.sequence_lengths if other != length)
    return found | {f"length_{other}": view(config.mask_rate, other) for other in others}


def heldout_batches(
    recipe: Recipe,
    phase: PhaseConfig,
    sources: Sources,
    view: str = MAIN,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, list[Batch]]:
    """Return this rank's micro-batches of a view, of one row each, by domain.

    Every rank gets as many, since ranks that share a model compute together: where the rows are not
    divided by the ranks, the last ones get a row with nothing to predict.
    """
    slots = recipe.evaluation.rows * phase.row_tokens
    phase = views(recipe, phase)[view]
    batches: dict[str, list[Batch]] = {}
    for dataset in sources.heldout.values():
        rows = list(
            heldout_rows(
                dataset,
                phase,
                recipe.data,
                sources.tokenizer,
                recipe.seed,
                -(-slots // phase.row_tokens),
            )
        )
        domain = batches.setdefault(dataset.domain, [])
        for n in range(rank, -(-len(rows) // world_size) * world_size, world_size):
            batch = collate([rows[n % len(rows)]], phase, recipe.data, pin_memory=False)
            if n >= len(rows):
                batch["labels"].fill_(IGNORED)
            domain.append(batch)
    return batches


@contextmanager
def evaluating(model: MaskedLM) -> Iterator[None]:
    """Have the model compute without dropout and gradients, as it does in training otherwise."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        # Code compiled for training would be compiled once more for evaluation.
        with (
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
            torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
        ):
            yield
    finally:
        model.train(training)
        reshard(model)


def evaluate(
    model: MaskedLM, batches: dict[str, list[Batch]], go_on: Callable[[], bool] = lambda: True
) -> Results:
    """Return loss (nats a predicted token), accuracy and number of predictions of each domain, and
    of `all`; nothing where there are none.

    Raises Abandoned if `go_on` says no before a forward pass, on all ranks.
    """
    if not batches:
        return {}
    device = next(model.parameters()).device
    sums = torch.zeros(len(batches), 3, dtype=torch.float64, device=device)
    with evaluating(model):
        for n, domain in enumerate(batches.values()):
            for batch in domain:
                if not go_on():
                    raise Abandoned
                on_device = {
                    key: value.to(device) if isinstance(value, torch.Tensor) else value
                    for key, value in batch.items()
                }
                sums[n] += torch.stack([part.double() for part in model(on_device)[1:]])
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
        start: Start,
        clock: RunClock,
        metrics: MetricsLog,
        go_on: Callable[[], bool],
    ) -> None:
        """`go_on` is asked between forward passes, on all ranks, whether to finish an evaluation
        that is not the run's last."""
        self._recipe = recipe
        self._sources = sources
        self._timeline = start.timeline
        self._clock = clock
        self._metrics = metrics
        self._go_on = go_on
        self._phase = ""
        self._batches: dict[str, dict[str, list[Batch]]] = {}
        self.latest: dict[str, Any] | None = start.manifest.get("evaluation")
        """`step` and `domains` of the newest evaluation, also of one before a resume; None before
        the first."""
        self._probes = {
            name: Probe(examples, sources.tokenizer) for name, examples in sources.probes.items()
        }
        self._hooks = {name: make(given) for name, given in recipe.evaluation.hooks.items()}
        self._due = start.resumes and bool(start.manifest.get("evaluation_due"))
        self._passages = hidden_words(
            sources.heldout.values(), sources.tokenizer, recipe.seed, recipe.evaluation.samples
        )

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"evaluation": self.latest, "evaluation_due": self._due}

    def prepare(self, phase: PhaseConfig) -> None:
        """Read the rows of a phase, unless they are there."""
        if phase.name != self._phase:
            ranks = dist.get_global_rank(), dist.get_world_size()
            self._batches = {
                view: heldout_batches(self._recipe, phase, self._sources, view, *ranks)
                for view in views(self._recipe, phase)
            }
            self._phase = phase.name

    def catch_up(self, state: State) -> None:
        """Evaluate what the process before was stopped in."""
        if self._due:
            step = state.timestamp.batch.value
            model = unwrap(state).model
            enter(model, self._timeline.at(step - 1).phase)
            self._evaluate(state)
            enter(model, self._timeline.at(step).phase)

    def batch_end(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        due = step % self._recipe.evaluation.every_steps == 0 or self._timeline.ends_phase(step)
        if due and (self._sources.heldout or self._probes or self._hooks):
            self._evaluate(state)

    def _evaluate(self, state: State) -> None:
        step = state.timestamp.batch.value
        last = step == self._timeline.end_step
        with self._clock.pause():
            self.prepare(self._timeline.at(step - 1).phase)
            go_on = (lambda: True) if last else self._go_on
            model = unwrap(state).model
            try:
                results = {
                    view: evaluate(model, batches, go_on) for view, batches in self._batches.items()
                }
                ranks = dist.get_global_rank(), dist.get_world_size()
                with evaluating(model):
                    samples = guess(model, self._passages, self._sources.tokenizer)
                    probes = {name: p.judge(model, *ranks) for name, p in self._probes.items()}
                    hooks = {
                        name: hook(model, self._sources.tokenizer)
                        for name, hook in self._hooks.items()
                    }
            except Abandoned:
                self._due = True
                return
        self._due = False
        self.latest = {"step": step, "domains": results.pop(MAIN)}
        parts = {"views": results, "probes": probes, "hooks": hooks}
        others = {name: part for name, part in parts.items() if part}
        tokens = self._timeline.at(step - 1).slots_before(step)
        self._metrics.write("eval", phase=self._phase, tokens=tokens, **self.latest, **others)
        losses = {name: result["loss"] for name, result in self.latest["domains"].items()}
        if "all" in losses:
            every = ", ".join(f"{n} {loss:.3f}" for n, loss in losses.items() if n != "all")
            log.info("step %d: held-out loss %.3f (%s)", step, losses["all"], every)
        if samples:
            self._metrics.write("samples", step=step, tokens=tokens, samples=samples)
