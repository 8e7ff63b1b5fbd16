"""Training on damaged data: it stops with one message, or goes on and says what it left out."""

import json
import shutil

import pytest

from tests.conftest import Tiny, Trainings, metrics


@pytest.fixture
def damaged(tiny: Tiny, tmp_path):
    """The recipe on data of which one shard is damaged and one is missing, and these shards."""
    shutil.copytree(tiny.folder / "mds", tmp_path / "mds")
    files = sorted((tmp_path / "mds" / "code").glob("*.zstd"))[1:3]
    files[0].write_bytes(files[0].read_bytes()[:-4])
    files[1].unlink()
    streams = {name: {"path": f"{tmp_path}/mds/{name}"} for name in ("code", "prose", "science")}
    recipe = tiny.write(
        tmp_path / "recipe.yaml",
        data__streams=streams,
        data__workers=2,
        cache_dir=str(tmp_path / "cache"),
        runs_dir=str(tmp_path / "runs"),
    )
    return recipe, {file.name.removesuffix(".zstd") for file in files}


def test_training_stops_with_one_message(damaged, train: Trainings, tmp_path):
    recipe, _ = damaged
    code, text = train(recipe)
    assert code == 2, text
    assert text.count("error: ") == 1
    assert "(stream code): the shard is" in text.splitlines()[-1]
    assert "Traceback" not in text


def test_skipped_shards_are_recorded_and_change_nothing_on_resume(
    damaged, train: Trainings, tmp_path
):
    recipe, files = damaged
    code, text = train(recipe, "run_name=whole", "data.on_damaged_shard=skip")
    assert code == 0, text
    whole = tmp_path / "runs" / "whole"
    skips = metrics(whole, "skip")
    assert {line["file"] for line in skips} == files
    assert {line["stream"] for line in skips} == {"code"}
    assert len(skips) == len({(line["lane"], line["file"]) for line in skips})
    assert "it is skipped from here on" in text
    last = metrics(whole)[-1]
    assert last["skipped_documents"]["damaged"] >= len(skips)

    killed = tmp_path / "runs" / "killed"
    first = ("run_name=killed", "data.on_damaged_shard=skip")
    code, _ = train(recipe, *first, kill_when=lambda: len(metrics(killed)) >= 12)
    assert code == -9
    code, text = train(recipe, *first, world_size=2)
    assert code == 0, text
    assert {line["step"]: line["data_digest"] for line in metrics(killed)} == {
        line["step"]: line["data_digest"] for line in metrics(whole)
    }
    assert metrics(killed)[-1]["skipped_documents"] == last["skipped_documents"]
    assert json.dumps(sorted(map(key, metrics(killed, "skip")))) == json.dumps(
        sorted(map(key, skips))
    )


def key(line):
    return [line[name] for name in ("lane", "stream", "file", "epoch", "position", "step")]
