"""What computed something, as runs and evaluations record it."""

import platform

import torch

from restomod.provenance import git, versions


def test_versions_are_those_of_what_is_installed():
    found = versions(("torch", "no-such-package"))
    assert found == {
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
    }


def test_git_is_silent_where_there_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git(tmp_path, "rev-parse", "HEAD") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git(tmp_path, "--version") is None
