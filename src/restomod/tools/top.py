"""`restomod top`: a run on a terminal, for somebody on a login node who has its folder.

In: a run folder, of which metrics.jsonl is read: no GPU, no W&B, no torch, and nothing of the
training process. Out: a picture, drawn anew (`top_frame.py`). `commands.py` calls this.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from restomod.errors import UserError, within
from restomod.tools.record.following import Followed
from restomod.tools.top_frame import frame


def top(folder: Path, once: bool = False, every_s: float = 1.0) -> None:
    """Show a run until Ctrl-C; one picture only with `once`, or where there is no terminal.

    Raises UserError where there is no run folder.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console()
    if not (folder / "config.yaml").exists() and not (folder / "metrics.jsonl").exists():
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder{within(folder)}")
        raise UserError(f"{folder}: is no run folder: it has neither config.yaml nor metrics.jsonl")
    run = Followed(folder)
    if once or not console.is_terminal:
        while run.update():
            pass
        console.print(frame(run, console))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                more = run.update()
                live.update(frame(run, console), refresh=True)
                time.sleep(0.0 if more else every_s)
        except KeyboardInterrupt:
            return
