"""What a person sees while a run trains: a bar on a terminal, a plain line every few seconds
elsewhere.

`builder.py` makes the callback.
"""

from __future__ import annotations

import logging
import time

from composer import Callback, Logger, State
from composer.utils import dist
from tqdm import tqdm

from restomod.timeline import Timeline
from restomod.train.step_metrics import StepMetrics

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


class Progress(Callback):
    """Shows step, loss, tokens/s and the time left, on rank 0."""

    def __init__(self, timeline: Timeline, steps: StepMetrics, started: float) -> None:
        self._timeline = timeline
        self._steps = steps
        self._started = started
        self._first_step_seen = False
        self._first = 0
        self._begin = self._line_at = 0.0
        self._bar: tqdm | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        self._begin = time.perf_counter()

    def batch_start(self, state: State, logger: Logger) -> None:
        if self._bar is None and dist.get_global_rank() == 0:
            self._first = state.timestamp.batch.value
            self._bar = tqdm(
                total=self._timeline.end_step,
                initial=self._first,
                unit="step",
                desc=self._timeline.at(self._first).phase.name,
                disable=None,
                dynamic_ncols=True,
                smoothing=0.05,
            )

    def batch_end(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() != 0 or self._bar is None:
            return
        step = state.timestamp.batch.value
        if not self._first_step_seen:
            self._first_step_seen = True
            log.info("first step done %.1f s after the start", time.monotonic() - self._started)
        last = self._steps.last
        name = self._timeline.at(step - 1).phase.name
        if not self._bar.disable:
            self._bar.set_description(name, refresh=False)
            if last:
                self._bar.set_postfix(
                    loss=f"{last['loss']:.3f}",
                    tokens_per_s=f"{last['tokens_per_s']:,.0f}",
                    refresh=False,
                )
            self._bar.update()
        elif last and (step == self._timeline.end_step or time.perf_counter() > self._line_at):
            self._line_at = time.perf_counter() + LINE_EVERY_S
            pace = (time.perf_counter() - self._begin) / (step - self._first)
            left = int(pace * (self._timeline.end_step - step))
            log.info(
                "%s step %d/%d: loss %.3f, %s tokens/s, %d:%02d left",
                name,
                step,
                self._timeline.end_step,
                last["loss"],
                f"{last['tokens_per_s']:,.0f}",
                *divmod(left, 60),
            )

    def fit_end(self, state: State, logger: Logger) -> None:
        if self._bar is not None:
            self._bar.close()
