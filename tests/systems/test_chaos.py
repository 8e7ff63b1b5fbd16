"""The short form of `tests/chaos.py`: a run through faults of all kinds ends as an unbroken one."""

import json

from tests import chaos
from tests.conftest import Tiny, metrics

SEED = 9248
"""Draws a full disk, missing data, two damaged checkpoints, kills and signals."""


def test_faults_change_no_number_and_a_changed_number_is_found(tiny: Tiny, tmp_path, capsys):
    recipe = tiny.write(
        tmp_path / "recipe.yaml",
        phases__slots=44 * 2 * 512,
        phases__batch_rows=2,
        checkpoint__every_steps=4,
        evaluation__every_steps=20,
    )
    out = tmp_path / "out"
    words = [str(recipe), "faults.spikes.threshold=1.25", "--faults", "9", "--seed", str(SEED)]
    code = chaos.main([*words, "--out", str(out)])
    text = capsys.readouterr().out
    assert code == 0, text
    assert "PASSED: 9 faults of 9 kinds; 44 steps" in text

    chaotic, unbroken = out / "chaotic", out / "runs" / "unbroken"
    assert metrics(chaotic, "skipped_step"), "no roll-back put a step on the ledger"
    assert chaos.differences(chaotic, unbroken, 44) == []
    lines = (chaotic / "metrics.jsonl").read_text().splitlines()
    (number,) = [n for n, line in enumerate(lines) if '"event": "train", ' in line
                 and json.loads(line)["step"] == 31]  # fmt: skip
    changed = json.loads(lines[number])
    changed["loss"] += 2.0**-20
    lines[number] = json.dumps(changed)
    (chaotic / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    problems = chaos.differences(chaotic, unbroken, 44)
    assert [problem[:13] for problem in problems] == ["step 31: loss"]
    assert chaos.verdict([], 0, 44, problems) == 1
    del lines[number]
    (chaotic / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert chaos.differences(chaotic, unbroken, 44) != []


def test_fewer_faults_than_asked_for_is_no_success():
    assert chaos.verdict([], 1, 44, []) == 1
