"""A file system of its own, whose size changes: what a full disk does to a run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOM_KB = 4_000_000
"""Of an empty disk; memory is taken for what is written only."""
LEFT_KB = 64
"""Free on a disk that counts as full."""


class SmallDisk:
    """A tmpfs at `folder`, if this process may mount one; a plain folder otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounted = False

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir(parents=True)
        self.mounted = os.geteuid() == 0 and self.resize(ROOM_KB)
        return self

    def __exit__(self, *error: object) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", self.folder], check=True)

    def resize(self, kilobytes: int) -> bool:
        options = f"size={kilobytes}k" + (",remount" if self.mounted else "")
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        return subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode == 0

    def fill(self) -> None:
        """Leave next to no room; to be called again when something was deleted."""
        usage = shutil.disk_usage(self.folder)
        if usage.free > LEFT_KB * 1024:
            self.resize(usage.used // 1024 + LEFT_KB // 2)

    def empty(self) -> None:
        self.resize(ROOM_KB)
