"""Steps that must not be learned from: non-finite gradients, leaping losses, rows on the ledger.

Before the optimizer's step, the device decides with no host sync whether the update is skipped;
after it, when Composer has synced anyway, every rank reads the same decision. A roll-back is raised
as `RollBack`, on which `builder.py` goes back to the last checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist
from torch import Tensor

from restomod.config import FaultsConfig, Recipe, SpikeConfig
from restomod.data.loader import Loader
from restomod.errors import UserError
from restomod.timeline import Timeline
from restomod.train.agreement import gloo_group, together
from restomod.train.checkpoints.saving import disk_errors
from restomod.train.faults.ledger import Ledger
from restomod.train.metrics import MetricsLog
from restomod.train.module import unwrap

log = logging.getLogger(__name__)

GAUSSIAN = 1.4826
"""Standard deviations in a median absolute deviation of normal numbers."""
LEAST_DEVIATION = 1e-3
"""Of the median: a loss that does not move must not make spikes of rounding."""


class RollBack(Exception):
    """A spike after which the run goes back to its last checkpoint; its rows are on the ledger."""

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry["step"])
        self.entry = entry


class UnhealthyError(UserError):
    """Training cannot go on by itself; the run was saved."""


class LossWindow:
    """The losses of the last steps, and how far a new one lies above them. On the device."""

    def __init__(self, config: SpikeConfig, device: torch.device) -> None:
        self._losses = torch.full((config.window_steps,), math.nan, device=device)
        self._next = 0

    def deviations(self, loss: Tensor) -> Tensor:
        """Return how many robust standard deviations `loss` lies above the median; minus infinity
        while less than half of the window is known."""
        known = self._losses.isfinite().sum()
        median = self._losses.nanquantile(0.5)
        deviation = GAUSSIAN * (self._losses - median).abs().nanquantile(0.5)
        z = (loss - median) / torch.maximum(deviation, LEAST_DEVIATION * median.abs())
        return torch.where(known * 2 >= len(self._losses), z, -math.inf)

    def add(self, loss: Tensor, leave_out: Tensor) -> None:
        """Take a loss in unless `leave_out` (bool)."""
        slot = self._next % len(self._losses)
        self._losses[slot] = torch.where(leave_out, self._losses[slot], loss)
        self._next += 1

    def clear(self) -> None:
        self._losses.fill_(math.nan)

    def state_dict(self) -> dict[str, Any]:
        known = [None if math.isnan(x) else x for x in self._losses.tolist()]
        return {"losses": known, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what `state_dict` returned; another length keeps nothing."""
        if len(state["losses"]) == len(self._losses):
            values = [math.nan if x is None else x for x in state["losses"]]
            self._losses.copy_(torch.tensor(values))
            self._next = state["next"]


class Health(Callback):
    """Skips steps, counts them, and stops the run or takes it back where the recipe says so."""

    def __init__(
        self,
        recipe: Recipe,
        timeline: Timeline,
        loader: Loader,
        ledger: Ledger,
        metrics: MetricsLog,
        saved: dict[str, Any],
    ) -> None:
        """`saved` is the `state_dict` of the checkpoint that the run goes on from, or empty."""
        self._faults: FaultsConfig = recipe.faults
        self._spikes = recipe.faults.spikes
        self._folder: Path = recipe.run_folder
        self._timeline = timeline
        self._loader = loader
        self._ledger = ledger
        self._metrics = metrics
        self._saved = saved
        self._window: LossWindow | None = None
        self._on_ledger = False
        self._loss = self._z = torch.zeros(())
        self.skipped_steps: int = saved.get("skipped_steps", 0)
        """Steps of the run that changed no weight."""
        self._nonfinite: list[dict[str, Any]] = list(saved.get("nonfinite", []))
        """The last steps, as far as their gradients were not finite, one after the other."""
        self._too_many: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: all of it is the same on every rank."""
        return {
            "skipped_steps": self.skipped_steps,
            "nonfinite": self._nonfinite,
            "window": self._window.state_dict() if self._window else {},
            "ledger": self._ledger.entries,
        }

    def fit_start(self, state: State, logger: Logger) -> None:
        if self._spikes.action != "off":
            device = next(unwrap(state).parameters()).device
            self._window = LossWindow(self._spikes, device)
            self._group = gloo_group()
            if self._saved.get("window"):
                self._window.load_state_dict(self._saved["window"])

    def batch_start(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        span = self._timeline.at(step)
        self._on_ledger = self._ledger.covers(span.rows_before(step), span.batch_rows(step))
        if self._window and step == span.first_step:
            self._window.clear()  # other lengths, mixture or mask rate: another loss

    def after_train_batch(self, state: State, logger: Logger) -> None:
        optimizer: Any = state.optimizers[0]
        sums = unwrap(state).sums
        veto = torch.tensor(float(self._on_ledger), device=sums.device)
        if self._window:
            total = sums.clone()
            if dist.get_world_size() > 1:
                torch.distributed.all_reduce(total)
            self._loss = total[0] / total[2].clamp(min=1)
            self._z = self._window.deviations(self._loss)
            spike = self._z > self._spikes.threshold
            left_out = spike | (veto != 0) | ~self._loss.isfinite()
            self._window.add(self._loss, left_out)
            if self._spikes.action == "skip":
                veto = torch.maximum(veto, spike.float())
        optimizer.veto = veto

    def batch_end(self, state: State, logger: Logger) -> None:
        optimizer: Any = state.optimizers[0]
        step = state.timestamp.batch.value
        skipped = bool(optimizer.skipped)
        spike = (
            self._window is not None
            and not self._on_ledger
            and float(self._z) > self._spikes.threshold
        )
        if spike and self._spikes.action == "rollback":
            self._roll_back(step)
        if not skipped:
            self._nonfinite = []
            return
        self.skipped_steps += 1
        reason = "ledger" if self._on_ledger else "spike" if spike else "nonfinite"
        facts = self._facts(step)
        self._metrics.write("skipped_step", reason=reason, **facts)
        if reason != "nonfinite":
            return
        log.warning("step %d: its gradient is not finite; the step is skipped", step)
        self._nonfinite.append(facts)
        if len(self._nonfinite) >= self._faults.nonfinite_steps:
            self._too_many, self._nonfinite = self._nonfinite, []

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Stop after a step that was too many; its metrics are written by now."""
        if self._too_many:
            self._give_up(self._too_many)

    def _facts(self, step: int) -> dict[str, Any]:
        """Return which rows the step trained on, their digest, and how its loss lay."""
        digests = dist.all_gather_object(self._loader.facts.digest)
        span = self._timeline.at(step - 1)
        facts: dict[str, Any] = {
            "step": step,
            "first_row": span.rows_before(step - 1),
            "rows": span.batch_rows(step - 1),
            "data_digest": f"{sum(digests) % 2**64:016x}",
        }
        if self._window:
            facts |= {"loss": float(self._loss), "deviations": float(self._z)}
        return facts

    def _roll_back(self, step: int) -> None:
        facts = self._facts(step)
        times = sum(entry["reason"] == "spike" for entry in self._ledger.entries)
        if times >= self._spikes.max_rollbacks:
            raise UserError(
                f"the loss of step {step} is {facts['loss']:.3f}, {facts['deviations']:.0f} "
                f"deviations above the steps before it, after {times} roll-backs "
                "(faults.spikes.max_rollbacks); lower the learning rate, or look at rows "
                f"{facts['first_row']} to {facts['first_row'] + facts['rows'] - 1}"
            )
        last = min(step - 1 + self._spikes.rollback_steps, self._timeline.end_step)
        rows = self._timeline.at(last - 1).rows_before(last) - facts["first_row"]
        entry = {**facts, "rows": rows, "reason": "spike"}
        together(lambda: self._record(entry), self._group)
        raise RollBack(entry)

    def _record(self, entry: dict[str, Any]) -> None:
        with disk_errors(self._folder, "The run was about to go back to its last checkpoint"):
            self._ledger.add(entry, write=dist.get_global_rank() == 0)

    def _give_up(self, steps: list[dict[str, Any]]) -> None:
        first, last = steps[0]["step"], steps[-1]["step"]
        path = self._folder / "nonfinite" / f"step-{last:08d}.json"
        if dist.get_global_rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(steps, indent=1) + "\n")
        raise UnhealthyError(
            f"the gradients of {len(steps)} steps in a row, {first} to {last}, are not finite "
            "(faults.nonfinite_steps); the weights are those before them, the run is saved, and "
            f"{path} names rows and data digests"
        )
