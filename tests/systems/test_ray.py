"""A preparation on a Ray cluster of two workers, one of which is killed, writes the same bytes."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from restomod.errors import UserError
from restomod.prepare import pipeline
from restomod.prepare.config import load_preparation
from restomod.prepare.executor import RayExecutor, run_stage
from restomod.prepare.job import Job

ROOT = Path(__file__).parents[2]
VOLATILE = ("card.html", "timing.json")


@pytest.fixture(scope="module")
def cluster():
    """A head without cores and two nodes of one core each."""
    import ray
    from ray.cluster_utils import Cluster

    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options = {"object_store_memory": 100_000_000}
        started = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **options},
        )
        started.nodes = [started.add_node(num_cpus=1, **options) for _ in range(2)]
        started.wait_for_nodes()
        try:
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in VOLATILE
    }


def write_recipe(folder, address):
    generator = np.random.default_rng(1)
    for name in ("a", "b"):
        with (folder / f"{name}.jsonl").open("w") as file:
            for size in generator.integers(5, 60, 150):
                words = [f"w{n}" for n in generator.integers(0, 2000, size)]
                file.write(json.dumps({"text": " ".join(words)}) + "\n")
            file.write("{broken\n")
    recipe = {
        "unit_size": "8kb",
        "sources": {name: {"paths": [f"{folder}/{name}.jsonl"]} for name in ("a", "b")},
        "tokenizer": {"vocab_size": 320},
        "heldout": {"share": 0.1},
        "shards": {"size": "2kb"},
        "execution": {"ray": address, "workers": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def killed_once(job, number):
    """Kill the worker that comes to task 1 for the first time."""
    marker = job.folder / "killed"
    if number == 1 and not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return {"number": number}


def always_killed(job):
    os.kill(os.getpid(), signal.SIGKILL)


def refused(job):
    raise UserError("shard.jsonl:7: is wrong")


def broken(job):
    raise ZeroDivisionError("somewhere")


def test_a_task_whose_worker_is_killed_is_begun_anew(cluster, tmp_path):
    recipe = load_preparation([write_recipe(tmp_path, cluster.address)], ["out=x"])
    job, ray = Job(recipe, tmp_path), RayExecutor(recipe.execution)
    results = run_stage(ray, killed_once, job, "s", {n: (n,) for n in range(4)})
    assert [result["number"] for result in results] == [0, 1, 2, 3]
    assert (tmp_path / "killed").exists()
    with pytest.raises(UserError, match="stage, task 0: its worker died 3 times"):
        run_stage(ray, always_killed, job, "stage", {0: ()})
    with pytest.raises(UserError, match=r"shard.jsonl:7: is wrong"):
        run_stage(ray, refused, job, "refused", {0: ()})
    with pytest.raises(ZeroDivisionError, match=r"test_ray.py.*in broken"):
        run_stage(ray, broken, job, "broken", {0: ()})


def test_the_cluster_writes_the_bytes_that_one_process_writes_though_a_node_dies(
    cluster, tmp_path, monkeypatch
):
    recipe = write_recipe(tmp_path, cluster.address)
    alone = load_preparation([recipe], [f"out={tmp_path / 'alone'}", "execution.ray=''"])
    pipeline.prepare(alone)
    run = RayExecutor.run
    removed = []

    def run_and_remove(self, tasks):
        for number in run(self, tasks):
            if not removed and tasks[0][2] == "read":
                removed.append(cluster.nodes.pop())
                cluster.remove_node(removed[0], allow_graceful=False)
            yield number

    monkeypatch.setattr(RayExecutor, "run", run_and_remove)
    pipeline.prepare(load_preparation([recipe], [f"out={tmp_path / 'cluster'}"]))
    assert removed
    assert tree(tmp_path / "cluster") == tree(tmp_path / "alone")


def test_no_cluster_is_said(cluster, tmp_path):
    import ray

    ray.shutdown()
    recipe = load_preparation([write_recipe(tmp_path, "127.0.0.1:1")], [f"out={tmp_path / 'out'}"])
    with pytest.raises(UserError, match=r"execution.ray: 127.0.0.1:1: no Ray cluster answers"):
        pipeline.prepare(recipe)
