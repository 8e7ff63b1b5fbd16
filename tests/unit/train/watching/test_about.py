"""What a run says of the code and the model that it was made from."""

import subprocess

import pytest
import torch

from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.train.watching import about
from restomod.train.watching.about import git_state, model_fingerprint


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.check_output(["git", "-C", folder, *who, *words], text=True).strip()


def test_git_state_is_that_of_the_code_or_else_of_the_working_directory(tmp_path, monkeypatch):
    code = tmp_path / "code" / "about.py"
    code.parent.mkdir()
    code.write_text("x = 1\n")
    monkeypatch.setattr(about, "__file__", str(code))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert git_state() == {}
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    assert git_state() == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    git(code.parent, "init", "-q")
    git(code.parent, "add", "about.py")
    git(code.parent, "commit", "-q", "-m", "other")
    assert git_state() == {"commit": git(code.parent, "rev-parse", "HEAD"), "dirty": False}
    code.write_text("x = 2\n")
    assert git_state()["dirty"]


@pytest.mark.parametrize("change", [{"layers": 3}, {"norm": "rmsnorm"}, {"vocab_size": 65}])
def test_model_fingerprint_is_that_of_the_shape_not_of_the_weights(change):
    shape = {
        "layers": 2, "hidden_size": 32, "heads": 2, "intermediate_size": 48, "vocab_size": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    first, second = (MaskedLM(EncoderConfig(**shape)) for _ in range(2))
    assert model_fingerprint(first) == model_fingerprint(second)
    other = model_fingerprint(MaskedLM(EncoderConfig(**{**shape, **change})))
    assert other["sha256"] != model_fingerprint(first)["sha256"]
    assert model_fingerprint(first)["parameters"] == sum(p.numel() for p in first.parameters())
