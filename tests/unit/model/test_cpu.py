"""Reuse of freed memory."""

import platform
import subprocess
import sys

import pytest

from restomod.model.cpu import keep_freed_memory

PROGRAM = """
import resource, torch
from restomod.model.cpu import keep_freed_memory
if {keep}: assert keep_freed_memory()
torch.zeros(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): torch.zeros(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="concerns glibc")
def test_large_tensors_fault_no_new_pages() -> None:
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM.format(keep=keep)],
                capture_output=True, text=True, check=True,
            ).stdout
        )
        for keep in (False, True)
    ]  # fmt: skip
    assert faults[1] * 100 < faults[0]


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
