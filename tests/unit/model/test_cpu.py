"""Reuse of freed memory."""

import platform
import subprocess
import sys

import pytest

from restomod.model.cpu import keep_freed_memory

PROGRAM = """
import resource, torch
from restomod.model.cpu import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.set_num_threads(1)
layers = torch.nn.Sequential(*(torch.nn.Linear(n, m) for n, m in [(8, 500), (500, 999), (999, 8)]))
def step():
    layers(torch.ones(10_000, 8)).sum().backward()

counts = []
for kept in (False, True):
    if kept:
        assert keep_freed_memory()
    for n in range(12):
        if n == 4:  # glibc's holes have settled
            before = faults()
        step()
    counts.append(faults() - before)
print(*counts)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="concerns glibc")
def test_a_repeated_step_faults_few_new_pages() -> None:
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    fresh, kept = map(int, out.stdout.split())
    assert kept * 3 < fresh


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
