"""Runs on several ranks go on after each kill with the numbers of a run that nothing disturbed."""

import pytest

from tests.conftest import Tiny, Trainings, metrics
from tests.integration.test_resume import exactly

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("parallel", "world_size"),
    [
        ("{strategy: ddp}", 2),
        ("{strategy: ddp}", 4),
        ("{strategy: fsdp}", 2),
        ("{strategy: hsdp, shard_ranks: 2}", 4),
    ],
)
def test_three_kills_change_no_number(
    tiny: Tiny, train: Trainings, tmp_path, parallel: str, world_size: int
):
    recipe = tiny.write(tmp_path / "recipe.yaml", runs_dir=str(tmp_path / "runs"))
    words = (recipe, f"parallel={parallel}")
    code, text = train(*words, "run_name=unbroken", world_size=world_size)
    assert code == 0, text
    folder = tmp_path / "runs" / "killed"
    for step in (8, 14, 20):
        code, text = train(
            *words,
            "run_name=killed",
            world_size=world_size,
            kill_when=lambda step=step: len(metrics(folder)) >= step,
        )
        assert code == -9, text
    code, text = train(*words, "run_name=killed", world_size=world_size)
    assert code == 0, text
    assert [line["step"] for line in metrics(folder)] == list(range(1, 25))
    assert exactly(folder) == exactly(tmp_path / "runs" / "unbroken")
    resumes = [line["from_step"] for line in metrics(folder, "resume")]
    assert len(resumes) == 3
    assert resumes == sorted(resumes)
    assert resumes[0] >= 5
    ends = [metrics(folder.with_name(run), "eval")[-1]["domains"] for run in ("killed", "unbroken")]
    assert ends[0] == ends[1]
