"""TensorBoard's files, with token slots as the axis.

In: lines of metrics.jsonl. Out: event files. `watch.py` makes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restomod.train.watching.background import Line
from restomod.train.watching.scalars import scalars


class TensorBoard:
    """Writes to the run folder's tensorboard/. What a run that goes back does again replaces what
    it had done."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def heard(self, line: Line) -> None:
        if line["event"] in ("start", "resume"):
            self._open(line)
        tokens = line.get("tokens")
        if self._writer is None or tokens is None:
            return
        for name, value in scalars(line).items():
            self._writer.add_scalar(name, value, tokens)
        for n, sample in enumerate(line.get("samples", ())):
            self._writer.add_text(f"samples/{sample['domain']}/{n}", markdown(sample), tokens)
        if line["event"] == "checkpoint":
            self._writer.flush()  # what came before it is not done again

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self, line: Line) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        purge = line["tokens"] + 1 if line["event"] == "resume" else 0
        self._writer = SummaryWriter(str(self._folder), purge_step=purge)


def markdown(sample: dict[str, Any]) -> str:
    """Return a fill-mask sample as a line of text with the guesses below."""
    guesses = ", ".join(
        f"{guess['token'].strip()} {guess['probability']:.0%}" for guess in sample["predictions"]
    )
    text = " ".join(sample["text"].split())
    return f"{text}\n\nwas **{sample['expected'].strip()}**; guesses: {guesses}"
