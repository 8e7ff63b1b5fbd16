"""Training from S3, over HTTP, with a server that fails at times."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from restomod.data import files
from restomod.data.loader import Loader
from restomod.data.sources import open_sources
from restomod.recipe import load_recipe
from restomod.train.checkpoints.store import Store
from tests.conftest import metrics
from tests.integration.test_resume import exactly
from tests.s3 import BUCKET, ENVIRONMENT, s3, server  # noqa: F401

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=lambda _: None))


@pytest.fixture
def recipe(s3, tiny, tmp_path):  # noqa: F811
    """The tiny recipe, its data on the server, in workers, with a cache of its own."""
    streams = {
        name: {"path": s3.upload(tiny.folder / "mds" / name, name)}
        for name in ("code", "prose", "science")
    }

    def write(**changes):
        path = tiny.write(
            tmp_path / "recipe.yaml",
            **{"data__streams": streams, "cache_dir": str(tmp_path / "cache"), **changes},
            data__workers=2,
            data__download_attempts=3,
            evaluation__streams={},
        )
        return load_recipe([path])

    return write


def digests(recipe):
    loader = Loader(recipe, open_sources(recipe))
    return [loader.facts.digest for _, _ in zip(range(4), loader, strict=False)]


def test_failure_to_fetch_a_manifest_changes_no_batch(recipe, tiny, s3):  # noqa: F811
    """Taken for absent, its token count would be estimated, and the mixture be another one."""
    streams = {name: {"path": f"{tiny.folder}/mds/{name}"} for name in ("code", "prose", "science")}
    expected = digests(recipe(data__streams=streams))
    s3.faults["restomod.json"] = ["500", "500", "cut"]
    assert digests(recipe()) == expected
    assert len(s3.requests) == 3


def test_workers_train_through_a_remote_that_fails_at_times(recipe, tiny, s3):  # noqa: F811
    streams = {name: {"path": f"{tiny.folder}/mds/{name}"} for name in ("code", "prose", "science")}
    expected = digests(recipe(data__streams=streams, cache_dir=str(tiny.folder / "cache")))
    for n in range(4):
        s3.faults[f"shard.0000{n}.mds.zstd"] = ["500", "cut"]
    assert digests(recipe()) == expected
    assert {"500 shard.00000.mds.zstd", "cut shard.00000.mds.zstd"} <= set(s3.requests)


def test_train_command_needs_the_environment_only(recipe, tiny, s3, tmp_path):  # noqa: F811
    recipe(phases__slots=3 * 4 * 512, phases__schedule={}, runs_dir=str(tmp_path / "runs"))
    s3.faults["shard.00001.mds.zstd"] = ["cut"]
    words = [str(tmp_path / "recipe.yaml"), "run_name=far"]
    plan = ["-c", "import sys; from restomod.cli import main; sys.exit(main())", "plan"]
    for command in (plan, [str(ROOT / "train.py")]):
        done = subprocess.run(
            [sys.executable, *command, *words],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    assert [line["step"] for line in metrics(tmp_path / "runs" / "far")] == [1, 2, 3]


def test_run_goes_on_from_the_bucket_when_its_folder_is_gone(tiny, train, s3, tmp_path):  # noqa: F811
    s3.client().create_bucket(Bucket=BUCKET)
    recipe = tiny.write(
        tmp_path / "recipe.yaml", runs_dir=str(tmp_path / "runs"), store=f"s3://{BUCKET}/runs"
    )
    environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": s3.url, "AWS_MAX_ATTEMPTS": "1"}
    code, text = train(recipe, "run_name=unbroken", "store=", environment=environment)
    assert code == 0, text
    s3.upload_faults["model.json"] = ["500", "cut"]
    s3.upload_faults["metrics.jsonl"] = ["500"]
    store = Store(f"s3://{BUCKET}/runs", "gone")
    folder = tmp_path / "runs" / "gone"
    code, text = train(
        recipe, "run_name=gone", kill_when=lambda: len(store.steps()) >= 2, environment=environment
    )
    assert code == -9, text
    assert len(s3.requests) == 3
    shutil.rmtree(folder)
    s3.faults["__0_0.distcp"] = ["flip", "cut"]
    code, text = train(recipe, "run_name=gone", environment=environment)
    assert code == 0, text
    assert "files came from s3://bucket/runs/gone" in text
    assert metrics(folder, "resume")[-1]["from_step"] >= 10
    assert exactly(folder) == exactly(tmp_path / "runs" / "unbroken")
    assert store.steps()[0] == 24

    shutil.rmtree(folder)
    code, text = train(recipe, "run_name=gone", environment=environment)
    assert code == 0, text
    assert "the run is complete at step 24" in text
