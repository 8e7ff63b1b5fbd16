"""What a run was made from: code, model, data, versions. Rank 0 asks at the beginning of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import torch

from restomod.data.sources import Sources
from restomod.model.encoder import MaskedLM
from restomod.provenance import changed_files, git, versions
from restomod.train.guards import fingerprint
from restomod.train.start import Start

PACKAGES = ("restomod", "torch", "mosaicml", "numpy")


def about(model: MaskedLM, start: Start, device: str, sources: Sources) -> dict[str, Any]:
    """Return the fields of `start` and `resume` lines that say so."""
    timeline = start.timeline
    return {
        "end_step": timeline.end_step,
        "end_tokens": timeline.spans[-1].slots_before(timeline.end_step),
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "git": git_state(),
        "versions": versions(PACKAGES),
        "model": model_fingerprint(model),
        "data": fingerprint(sources),
    }


def git_state() -> dict[str, Any]:
    """Return `commit` of the code, and whether it was `dirty`: changed since. Of the repository
    that this file is in, or else of the working directory's; empty if there is none."""
    here = Path(__file__)
    folder = here.parent if git(here.parent, "ls-files", "--error-unmatch", here.name) else Path()
    commit = git(folder, "rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(changed_files(folder))} if commit else {}


def model_fingerprint(model: MaskedLM) -> dict[str, Any]:
    """Return the number of `parameters`, and `sha256` of the configuration and of all parameters'
    names and shapes."""
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    config = dataclasses.asdict(model.config)
    text = json.dumps([config, shapes], sort_keys=True)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": hashlib.sha256(text.encode()).hexdigest()[:16],
    }
