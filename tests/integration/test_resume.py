"""A killed run goes on as if nothing had happened."""

import json
import shutil

import pytest

from tests.conftest import Tiny, Trainings, metrics

EXACT = (
    "loss",
    "grad_norm",
    "lr",
    "data_digest",
    "real_tokens",
    "masked_tokens",
    "epochs",
    "accuracy",
)


@pytest.fixture(scope="module")
def unbroken(tiny: Tiny, train: Trainings, tmp_path_factory: pytest.TempPathFactory):
    """The recipe, and the folder of a run that nothing disturbed."""
    recipe = tiny.write(tmp_path_factory.mktemp("recipe") / "recipe.yaml")
    code, text = train(recipe, "run_name=unbroken")
    assert code == 0, text
    return recipe, tiny.folder / "runs" / "unbroken"


def exactly(run_folder):
    return {line["step"]: {key: line[key] for key in EXACT} for line in metrics(run_folder)}


def test_run_writes_every_step_and_learns(unbroken):
    _, folder = unbroken
    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert lines[-1]["tokens"] == 24 * 4 * 512
    assert (folder / "report.html").stat().st_size > 0
    assert [line["step"] for line in metrics(folder, "eval")] == [10, 20, 24]


def test_two_kills_change_no_number(tiny, train, unbroken):
    recipe, expected = unbroken
    folder = tiny.folder / "runs" / "killed"
    for stop in (8, 17):
        code, _ = train(
            recipe, "run_name=killed", kill_when=lambda stop=stop: len(metrics(folder)) >= stop
        )
        assert code == -9
    code, text = train(recipe, "run_name=killed")
    assert code == 0, text
    assert exactly(folder) == exactly(expected)
    resumes = [line["from_step"] for line in metrics(folder, "resume")]
    assert resumes == sorted(resumes)
    assert resumes[0] >= 5
    ends = [metrics(f, "eval")[-1]["domains"] for f in (folder, expected)]
    assert ends[0] == ends[1]


def test_workers_and_evaluation_change_no_number(tiny, train, unbroken):
    recipe, expected = unbroken
    code, text = train(
        recipe,
        "run_name=workers",
        "data.workers=3",
        "evaluation.streams={}",
        "checkpoint.every_steps=100",
    )
    assert code == 0, text
    assert exactly(tiny.folder / "runs" / "workers") == exactly(expected)
    assert metrics(expected, "eval")
    assert not metrics(tiny.folder / "runs" / "workers", "eval")


def test_broken_newest_checkpoint_is_named_and_the_one_before_it_used(tiny, train, unbroken):
    recipe, expected = unbroken
    folder = tiny.folder / "runs" / "broken"
    shutil.copytree(expected, folder)
    checkpoints = sorted((folder / "checkpoints").iterdir())
    state = next((checkpoints[-1] / "state").glob("*.distcp"))
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    code, text = train(recipe, "run_name=broken")
    assert code == 0, text
    assert f"{checkpoints[-1].name} is not used" in text
    assert metrics(folder, "resume")[-1]["from_step"] == 20
    assert exactly(folder) == exactly(expected)


def test_complete_run_is_left_alone(train, unbroken):
    recipe, folder = unbroken
    before = (folder / "metrics.jsonl").read_text()
    (folder / "REQUEUE").touch()  # would start it for ever
    code, text = train(recipe, "run_name=unbroken")
    assert code == 0
    assert not (folder / "REQUEUE").exists()
    assert "complete" in text
    assert (folder / "metrics.jsonl").read_text() == before


def test_longer_duration_is_free_and_another_learning_rate_is_not(tiny, train, unbroken):
    recipe, expected = unbroken
    folder = tiny.folder / "runs" / "longer"
    shutil.copytree(expected, folder)
    code, text = train(recipe, "run_name=longer", "optimizer.lr=2e-3", "phases.0.slots=100K")
    assert code == 2
    assert "optimizer.lr: was 0.001, is 0.002" in text
    code, text = train(
        recipe,
        "run_name=longer",
        "optimizer.lr=2e-3",
        "phases.0.slots=53_248",
        "resume.allow=[optimizer.lr]",
    )
    assert code == 0, text
    assert [line["step"] for line in metrics(folder)] == list(range(1, 27))
    assert metrics(folder, "resume")[-1]["changed"] == ["optimizer.lr"]


def test_changed_data_is_refused_by_name(tiny, train, unbroken, tmp_path):
    recipe, _ = unbroken
    other = tmp_path / "other"
    shutil.copytree(tiny.folder / "mds" / "prose", other)
    index = json.loads((other / "index.json").read_text())
    (other / "index.json").write_text(json.dumps({**index, "shards": index["shards"][:-1]}))
    code, text = train(
        recipe, "run_name=unbroken", "phases.0.slots=100K", f"data.streams.prose.path={other}"
    )
    assert code == 2
    assert "data.streams.prose" in text
