"""Twenty steps of toy recipes against losses kept beside this file, so that numerics cannot drift
unseen.

Tolerance: 5e-5 relative. Measured on the first recipe, one thread or two move a loss by less than
2e-7; what must not change unseen moves one by 3e-4 or more: attention dropout or learning rate 1 %
off (3e-4, 3e-3), local RoPE base halved (7e-4), eps of the norms 1e-4 (1e-2), mask rate 1 % off
(5e-2). After a change that is meant, write them anew:

    RESTOMOD_WRITE_GOLDEN=1 python -m pytest tests/integration/test_golden.py
"""

import json
import os
from pathlib import Path

import pytest

from tests.conftest import Tiny, Trainings, metrics

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 20
RECIPES = {
    "modernbert": {"optimizer__lr": 1e-2},
    "decoder": {
        "optimizer__lr": 1e-2,
        "phases__objective": "clm",
        "phases__z_loss": 1e-3,
        "model__norm": "rmsnorm",
        "model__activation": "swiglu",
        "model__rope_fraction": 0.5,
        "compute__recompute_every": 2,
        "compute__recompute_keep": "attention",
    },
    "alibi": {
        "optimizer__lr": 1e-2,
        "model__positions": "alibi",
        "model__global_every": 1,
        "model__norm_bias": True,
        "model__attention_bias": True,
        "model__mlp_bias": True,
        "model__head_bias": True,
        "model__decoder_bias": False,
        "compute__attention": "reference",
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_losses_are_those_that_were_kept(
    name: str, tiny: Tiny, train: Trainings, tmp_path: Path
) -> None:
    recipe = tiny.write(tmp_path / "recipe.yaml", **RECIPES[name])
    code, text = train(recipe, f"runs_dir={tmp_path}", f"run_name={name}")
    assert code == 0, text
    losses = [line["loss"] for line in metrics(tmp_path / name)][:STEPS]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("RESTOMOD_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**golden, name: losses}, indent=1) + "\n")
    else:
        assert losses == pytest.approx(golden[name], rel=5e-5)
    assert losses[-1] < losses[0] - 0.3
    assert all(line["domains"]["all"]["loss"] > 0 for line in metrics(tmp_path / name, "eval"))
