"""`restomod report`: the page of a run, of several runs side by side, or of a sweep.

In: folders, and where to write if not beside them. Out: the page's path. `commands.py` calls this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from restomod.errors import UserError
from restomod.sweep.file import COPY
from restomod.tools.report.compare import write_comparison
from restomod.tools.report.run import REPORT, write_report


def report(folders: Sequence[Path], out: Path | None) -> Path:
    """Write the page that shows the folders.

    Raises UserError where one does not exist, and where it is not clear where to write.
    """
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder}: no such folder; give run folders, such as runs/NAME")
    if len(folders) == 1:
        if (folders[0] / COPY).is_file():
            from restomod.sweep.page import rewrite_page  # optuna takes a second to load

            return rewrite_page(folders[0], out)
        return write_report(folders[0], out)
    return write_comparison(folders, out or _beside(folders))


def _beside(folders: Sequence[Path]) -> Path:
    """Return where the page of runs goes that lie in one folder."""
    parents = {folder.resolve().parent for folder in folders}
    if len(parents) > 1:
        raise UserError(
            "the runs lie in different folders: say with --out where their page is to be written"
        )
    return folders[0].parent / REPORT
