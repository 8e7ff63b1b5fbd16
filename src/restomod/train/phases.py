"""What each phase changes on a living run: the model's RoPE bases and objective, the optimizer's
rates, and whether its moments are kept.

`builder.py` makes the callback; evaluation enters phases with it.
"""

from __future__ import annotations

import logging

from composer import Callback, Logger, State

from restomod.config import OptimizerConfig, PhaseConfig
from restomod.model.encoder import MaskedLM
from restomod.optim.schedules import decay_of_weights, peak_lr, step_factor
from restomod.timeline import Span, Timeline
from restomod.train.module import unwrap

log = logging.getLogger(__name__)


class Phases(Callback):
    """Enters each step's phase, and sets its learning rate."""

    def __init__(self, timeline: Timeline, optimizer: OptimizerConfig) -> None:
        self._timeline = timeline
        self._optimizer = optimizer
        self._span: Span | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        span = self._timeline.at(step)
        if span is not self._span:
            self._enter(span, step, state)
        peak = peak_lr(span.phase, self._optimizer)
        lr = peak * step_factor(step - span.first_step, span.phase)
        decay = decay_of_weights(span.phase, self._optimizer)
        for group in state.optimizers[0].param_groups:
            group["lr"], group["lr_max"] = lr, peak
            group["weight_decay"] = decay if group["decays"] else 0.0

    def _enter(self, span: Span, step: int, state: State) -> None:
        phase = span.phase
        enter(unwrap(state).model, phase)
        begins = step == span.first_step and step > 0
        if begins and phase.optimizer_state == "reset":
            for moments in state.optimizers[0].state.values():
                for tensor in moments.values():
                    tensor.zero_()  # in place: compiled code and checkpoints know these tensors
        if begins:
            log.info(
                "phase %s begins at step %d: documents of %d tokens, RoPE base %g",
                phase.name,
                step + 1,
                phase.sequence_length,
                phase.rope_base_global,
            )
        self._span = span


def enter(model: MaskedLM, phase: PhaseConfig) -> None:
    """Set what a phase sets of the model."""
    model.enter_phase(
        rope_base_global=phase.rope_base_global,
        rope_base_local=phase.rope_base_local,
        max_sequence_length=phase.sequence_length,
        causal=phase.objective == "clm",
        z_loss=phase.z_loss,
    )
