"""Everything that listens to a run, on rank 0. `train/builder.py` makes it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from restomod.config import Recipe
from restomod.timeline import Timeline
from restomod.train.faults.health import UnhealthyError
from restomod.train.faults.stopping import StopRequested
from restomod.train.metrics import MetricsLog
from restomod.train.watching.alerts import Webhook
from restomod.train.watching.background import Background, Line, Listener
from restomod.train.watching.tensorboard import TensorBoard
from restomod.train.watching.wandb_listener import Wandb, wandb_mode

END_S = 60.0
"""How long a run that is complete waits for those who listen to it."""
STOP_S = 10.0
"""How long one waits that has to leave."""
LONGEST_REASON = 500


class Watch:
    """Hands each line of metrics.jsonl to all listeners."""

    def __init__(self, recipe: Recipe, timeline: Timeline, rank: int) -> None:
        self._timeline = timeline
        self._listeners = [Background(one) for one in listeners(recipe)] if rank == 0 else []
        self._step = timeline.origin.step
        self.log: MetricsLog | None = None
        """What `tell` writes to, as soon as there is one."""

    def hear(self, line: Line) -> None:
        """Take a line; return at once."""
        if line["event"] in ("start", "resume", "train"):
            self._step = line["step"]
        if "step" in line and "tokens" not in line:
            step = line["step"]
            span = self._timeline.at(max(step - 1, self._timeline.origin.step))
            line = {**line, "tokens": span.slots_before(step)}
        for listener in self._listeners:
            listener.hear(line)

    def tell(self, event: str, **fields: Any) -> None:
        """Write an event to metrics.jsonl, if that is possible, and have it heard; without `step`,
        it is that of the last line of training."""
        fields = {"step": self._step, **fields}
        if self.log is None:
            self.hear({"event": event, **fields})
        else:
            with contextlib.suppress(OSError):  # heard by then
                self.log.write(event, **fields)

    def hang(self, step: int, reason: str) -> None:
        """Have a hang heard, which no other thread may be waited for in."""
        self.hear({"event": "hang", "step": step, "reason": reason})

    def close(self, limit_s: float) -> None:
        """Let listeners finish for at most so many seconds."""
        deadline = time.monotonic() + limit_s
        for listener in self._listeners:
            listener.close(deadline)


@contextlib.contextmanager
def watching(recipe: Recipe, timeline: Timeline, rank: int) -> Iterator[Watch]:
    """Have a run listened to until the end of the block, and heard how it ends."""
    watch = Watch(recipe, timeline, rank)
    limit_s = STOP_S
    try:
        yield watch
        limit_s = END_S
    except StopRequested as stop:
        watch.tell("stop", reason=stop.reason, **({"step": stop.step} if stop.step else {}))
        raise
    except Exception as error:
        event = "nonfinite" if isinstance(error, UnhealthyError) else "failure"
        reason = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
        watch.tell(event, reason=reason)
        raise
    finally:
        watch.close(limit_s)


def listeners(recipe: Recipe) -> list[Listener]:
    """Return those that a recipe asks for."""
    chosen: list[Listener] = []
    if recipe.logging.alerts.webhook:
        chosen.append(Webhook(recipe.logging.alerts, recipe.run_name))
    if wandb_mode(recipe.logging.wandb) != "disabled":
        chosen.append(Wandb(recipe))
    if recipe.logging.tensorboard:
        chosen.append(TensorBoard(recipe.run_folder / "tensorboard"))
    return chosen
