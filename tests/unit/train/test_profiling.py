"""Profiles are written however training ends (tests/integration/test_faults.py has whole ones)."""

from types import SimpleNamespace

import torch

from restomod.config import ProfileConfig
from restomod.train.profiling import Profiling


def at(step):
    return SimpleNamespace(timestamp=SimpleNamespace(batch=SimpleNamespace(value=step)))


def test_steps_that_are_broken_off_are_written_and_no_longer_profiled(tmp_path):
    profiling = Profiling(ProfileConfig(steps=[2, 5]), tmp_path)
    for step in (1, 2):
        profiling.batch_start(at(step), None)
        profiling.batch_end(at(step + 1), None)
    assert torch.autograd._profiler_enabled()
    profiling.close(at(3), None)
    assert not torch.autograd._profiler_enabled()
    assert [file.name for file in (tmp_path / "profile").iterdir()] == ["trace-rank-00000.json.gz"]
