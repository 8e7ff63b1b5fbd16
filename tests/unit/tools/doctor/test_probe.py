import os
import resource
import socket
import threading
import time

import pytest

from restomod.data.sources import open_sources
from restomod.errors import UserError
from restomod.recipe import load_recipe
from restomod.tools.doctor import probe
from restomod.tools.doctor.place import Place
from restomod.tools.doctor.probe import check_store, digest, measure, measure_folder, within
from restomod.tools.plan.plan import plan
from tests.s3 import BUCKET, s3, server  # noqa: F401


@pytest.fixture
def recipe(tiny, tmp_path):
    path = tiny.write(
        tmp_path / "recipe.yaml", runs_dir=str(tmp_path / "runs"), cache_dir=str(tmp_path / "cache")
    )
    return lambda *overrides: load_recipe([path], list(overrides))


@pytest.fixture
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def test_deadline_is_kept_by_what_hangs():
    hold = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        within(0.05, hold.wait)
    assert time.monotonic() - started < 5
    hold.set()
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)


def test_healthy_machine_has_no_problems_and_is_left_as_it_was(recipe, tmp_path):
    facts = measure(recipe(), "", Place(), 60)
    assert facts.problems == {}
    assert facts.device_name
    assert facts.matmul_flops > 1e8
    assert facts.memory_bytes > facts.memory_free_bytes > 0
    assert facts.run_folder.write_bytes_per_s > 0
    assert facts.streams == 4
    assert facts.needs.checkpoint == 3 * facts.needs.gradients > 0
    assert facts.needs.step_memory > facts.needs.checkpoint
    assert facts.needs.open_files > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


def test_needs_are_those_of_the_plan(recipe):
    made = recipe("optimizer.name=muon", "checkpoint.keep_best=1", "checkpoint.average_best=2")
    needs = probe.needs(made, open_sources(made), Place(), "cpu")
    assert 2 * needs.gradients < needs.checkpoint < 3 * needs.gradients  # one moment of a matrix
    assert needs.checkpoints_kept == made.checkpoint.keep + 2 * len(made.trained_phases)
    assert needs.step_memory > 1e9  # Python and torch are in it
    text = plan(made, 1)
    assert f"{needs.checkpoint / 1e9:.3f} GB each" in text
    assert f"{needs.step_memory / 1e9:,.2f}" in text


def test_facts_survive_json(recipe):
    facts = measure(recipe(), "", Place(), 60)
    assert probe.Facts.from_plain(facts.plain()) == facts


def test_rank_that_is_no_leader_leaves_the_node_to_it(recipe):
    facts = measure(recipe(), "", Place(rank=1, local_rank=1, world_size=2), 60)
    assert facts.run_folder is None
    assert facts.recipe_digest == digest(recipe())
    assert facts.matmul_flops > 0


def test_what_hangs_is_told(recipe, monkeypatch):
    hold = threading.Event()
    monkeypatch.setattr(probe, "measure_folder", lambda path: hold.wait())
    facts = measure(recipe(), "", Place(), 1)
    hold.set()
    assert facts.problems["run folder"] == "no answer within 1 s"
    assert facts.run_folder.path == recipe().runs_dir


def test_missing_data_is_told(recipe):
    facts = measure(recipe("data.streams.code.path=/none"), "", Place(), 60)
    assert "data.streams.code: /none" in facts.problems["data"]
    assert facts.needs.checkpoint == 0


def test_kernel_or_compiler_that_is_not_there_is_told(recipe, monkeypatch):
    facts = measure(recipe("compute.attention=flash_attn_3"), "", Place(), 60)
    assert "flash_attn_3 cannot be used" in facts.problems["compute"]
    monkeypatch.setenv("CXX", "no-such-compiler")
    facts = measure(recipe("compute.compile=always"), "", Place(), 60)
    assert "C++ compiler" in facts.problems["compute"]


def test_folder_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    folder = measure_folder(tmp_path / "file" / "runs")
    assert folder.path == str(tmp_path / "file" / "runs")
    assert "file is a file" in folder.problem or "Not a directory" in folder.problem


def test_folder_without_room_is_told_and_left_empty(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        folder = measure_folder(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert folder.problem == "File too large"
    assert not os.listdir(tmp_path)


def test_recipes_that_differ_have_other_digests(recipe):
    assert digest(recipe()) == digest(recipe())
    assert digest(recipe("seed=1")) != digest(recipe())


def test_other_code_has_another_digest(monkeypatch, tmp_path):
    monkeypatch.setattr(probe.restomod, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "a.py").write_text("1")
    first = probe.versions()["restomod's code"]
    (tmp_path / "a.py").write_text("2")
    assert probe.versions()["restomod's code"] != first


def test_local_store_is_written_and_left_empty(tmp_path):
    check_store(f"file://{tmp_path}/store")
    assert not os.listdir(tmp_path / "store")


def test_store_is_listed_written_and_deleted(s3, monkeypatch, tiny):  # noqa: F811
    s3.upload(tiny.folder / "tokenizer", "tokenizer")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    check_store(f"s3://{BUCKET}/runs")
    with pytest.raises(UserError, match="s3://nobody/runs cannot be"):
        check_store("s3://nobody/runs")


def test_unreachable_store_is_told(s3, monkeypatch, closed_port):  # noqa: F811
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed_port)
    with pytest.raises(UserError, match="s3://other/runs cannot be listed"):
        check_store("s3://other/runs")


def test_unreachable_remote_of_data_is_told(s3, recipe, monkeypatch, closed_port):  # noqa: F811
    monkeypatch.setenv("S3_ENDPOINT_URL", closed_port)
    facts = measure(recipe("data.streams.code.path=s3://bucket/code"), "", Place(), 60)
    assert "data.streams.code: s3://bucket/code/index.json" in facts.problems["data"]
