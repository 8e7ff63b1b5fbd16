"""Folders between our encoder and transformers 5, which runs in an environment of its own."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.hf import load_transformers, save_transformers
from restomod.model.init import initialize

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "transformers-5" / "bin" / "python"


def transformers_5(mode: str, folder: Path) -> None:
    if not PYTHON.exists():
        pytest.fail("no environment with transformers 5: run this by `make test-systems`")
    script = Path(__file__).with_name("transformers_5.py")
    done = subprocess.run(
        [PYTHON, script, mode, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def compare_logits(model: MaskedLM, folder: Path) -> None:
    """Have transformers 5 read the folder; compare its logits with the packed model's."""
    lengths = [1, 2, 15, 90, 300]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, model.config.vocab_size, (sum(lengths),), generator=generator)
    documents = dict(zip("abcde", ids.split(lengths), strict=True))
    save_file(
        {name: part.clone() for name, part in documents.items()}, folder / "documents.safetensors"
    )
    transformers_5("read", folder)
    theirs = load_file(folder / "logits.safetensors")
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)])
    with torch.no_grad():
        ours = model.logits(ids, bounds).split(lengths)
    for name, logits in zip(documents, ours, strict=True):
        assert (logits - theirs[name]).abs().max() < 1e-4


def weights(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in folder.glob("model*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"rope_base_local": 160_000.0, "global_every": 2, "activation": "swiglu"},
        {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "head_bias": True},
    ],
    ids=["plain", "ettin", "biases"],
)
def test_an_export_works_there_and_comes_back(shape: dict[str, object], tmp_path: Path) -> None:
    config = EncoderConfig(
        layers=5, hidden_size=64, heads=4, intermediate_size=96, vocab_size=200, local_window=32,
        pad_id=3, cls_id=1, sep_id=2, attention_dropout=0.0, **shape,  # type: ignore[arg-type]
    )  # fmt: skip
    model = MaskedLM(config)
    initialize(model, seed=4)
    save_transformers(model, tmp_path)
    compare_logits(model, tmp_path)
    again = load_transformers(tmp_path / "again")
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_model_made_there_comes_in_and_goes_back_unchanged(tmp_path: Path) -> None:
    transformers_5("make", tmp_path / "theirs")
    model = load_transformers(tmp_path / "theirs")
    assert model.config.global_every == 4
    assert (model.config.rope_base_global, model.config.rope_base_local) == (4_000.0, 70.0)
    save_transformers(model, tmp_path / "ours")
    theirs, ours = weights(tmp_path / "theirs"), weights(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    config, config_again = (
        json.loads((tmp_path / who / "config.json").read_text()) for who in ("theirs", "ours")
    )
    assert {name: config_again.get(name) for name in config} == config
    compare_logits(model, tmp_path / "ours")
