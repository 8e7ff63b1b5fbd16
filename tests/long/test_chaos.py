"""The long form of `tests/chaos.py`: two phases through every kind of fault, twice each.

python -m pytest tests/long/test_chaos.py -s
"""

import json
from pathlib import Path

import pytest
import yaml

from tests import chaos
from tests.conftest import Tiny, metrics

STEPS, LATER_STEPS = 400, 200
FAULTS = 36
RANKS = 2


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "seed"), [("ddp", 1), ("fsdp", 2)])
def test_a_run_through_every_fault_ends_as_one_that_nothing_disturbed(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str], strategy: str, seed: int
) -> None:
    path = tiny.write(
        tmp_path / "recipe.yaml",
        phases__slots=STEPS * RANKS * 512,
        phases__batch_rows=RANKS,
        checkpoint__every_steps=7,
        evaluation__every_steps=50,
        faults__spikes__threshold=1.25,
        parallel={"strategy": strategy},
    )
    recipe = yaml.safe_load(path.read_text())
    later = {"name": "extend", "slots": LATER_STEPS * RANKS * 1024, "row_tokens": 1024}
    recipe["phases"].append(recipe["phases"][0] | later | {"sequence_length": 128})
    path.write_text(json.dumps(recipe))
    out = tmp_path / "out"
    with capfd.disabled():
        print(f"\n{strategy}:")
        numbers = {"--faults": FAULTS, "--seed": seed, "--ranks": RANKS}
        words = [str(word) for option in numbers.items() for word in option]
        code = chaos.main([str(path), *words, "--out", str(out)])
    assert code == 0
    assert metrics(out / "chaotic", "skipped_step"), "no roll-back put a step on the ledger"
