"""Where training hears of a request to stop: before each step, and in a first one that compiles.

In: this rank's `Loader` and `Stopper`. Out: `StopRequested`, on all ranks before the same step.
`train/builder.py` puts both into the Trainer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from composer import Callback, Logger, State

from restomod.data.batch import Batch
from restomod.data.loader import Loader, StoppedWaiting
from restomod.train.faults.stopping import Stopper, StopRequested


class Stoppable:
    """A loader's batches, before each of which all ranks agree whether to go on."""

    def __init__(self, loader: Loader, stopper: Stopper) -> None:
        self._loader = loader
        self._stopper = stopper
        loader.give_up = lambda: stopper.requested

    def __iter__(self) -> Iterator[list[Batch]]:
        self._stopper.hold()
        batches = iter(self._loader)
        while True:
            batch: list[Batch] = []
            with contextlib.suppress(StoppedWaiting):
                batch = next(batches)
            # Here, not in a callback: Composer lets ranks that have a batch wait for the others.
            if reason := self._stopper.agree():
                self._loader.put_back()
                raise StopRequested(reason, agreed=True)
            yield batch


class BreakingIn(Callback):
    """Lets a request break into the first step: to compile it may take minutes, and there is
    nothing to save before its end."""

    def __init__(self, stopper: Stopper) -> None:
        self._stopper = stopper
        self._begun = False

    def batch_start(self, state: State, logger: Logger) -> None:
        self._stopper.hold(lossless=not self._begun)
        self._begun = True

    def after_train_batch(self, state: State, logger: Logger) -> None:
        self._stopper.hold()
