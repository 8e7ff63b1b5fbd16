"""Nodes that share no disk train through a store."""

import pytest

from tests.conftest import metrics
from tests.integration.test_resume import exactly

SPIKES = """
from dataclasses import dataclass

from composer import Callback

from restomod.train.module import unwrap


@dataclass(eq=False)
class Spikes(Callback):
    step: int

    def after_forward(self, state, logger):
        if state.timestamp.batch.value == self.step - 1:
            unwrap(state).sums[0] *= 100
"""


@pytest.fixture
def new_nodes(tmp_path):
    """Make folders of nodes that were never seen before."""
    made = []

    def make(count):
        for _ in range(count):
            made.append(tmp_path / f"node-{len(made)}")
            made[-1].mkdir()
        return made[-count:]

    return make


def test_nodes_without_a_shared_folder_need_a_store(tiny, train, tmp_path, new_nodes):
    recipe = tiny.write(tmp_path / "recipe.yaml", runs_dir="runs")
    code, text = train(recipe, nodes=new_nodes(2))
    assert code == 2, text
    assert "set `store` to a remote folder" in text
    assert "Traceback" not in text


def test_run_goes_on_bit_exactly_on_nodes_that_never_saw_it(tiny, train, tmp_path, new_nodes):
    recipe = tiny.write(tmp_path / "recipe.yaml", runs_dir="runs", store=str(tmp_path / "store"))
    unbroken = new_nodes(2)
    code, text = train(recipe, "run_name=unbroken", nodes=unbroken)
    assert code == 0, text
    there = tmp_path / "store" / "killed"

    def stored():
        return len(list(there.glob("checkpoints/*/manifest.json"))) >= 2

    first = new_nodes(2)
    code, text = train(recipe, "run_name=killed", nodes=first, kill_when=stored)
    assert code == -9, text
    # One node is replaced; it becomes the first.
    nodes = [*new_nodes(1), first[0]]
    code, text = train(recipe, "run_name=killed", nodes=nodes)
    assert code == 0, text
    assert exactly(nodes[0] / "runs" / "killed") == exactly(unbroken[0] / "runs" / "unbroken")
    assert metrics(nodes[0] / "runs" / "killed", "resume")[-1]["from_step"] >= 10
    assert (there / "report.html").stat().st_size > 0
    assert (there / "tokenizer" / "tokenizer.json").exists()
    local = [sorted(path.name for path in node.glob("runs/killed/checkpoints/*")) for node in nodes]
    assert local[0] == local[1] == ["step-00000020", "step-00000024"]
    assert len(list(there.glob("checkpoints/*/manifest.json"))) == 3


def test_fork_begins_from_the_store_on_nodes_that_never_saw_the_run(
    tiny, train, tmp_path, new_nodes
):
    recipe = tiny.write(tmp_path / "recipe.yaml", runs_dir="runs", store=str(tmp_path / "store"))
    first = new_nodes(2)
    code, text = train(recipe, "run_name=first", nodes=first)
    assert code == 0, text
    words = (recipe, "run_name=second", "--fork", "runs/first@20")
    code, text = train(*words, "phases.0.lr=1e-4", nodes=first)
    assert code == 0, text
    elsewhere = new_nodes(2)
    code, text = train(*words, "phases.0.lr=1e-4", "store=", nodes=elsewhere[:1])
    assert code == 2
    assert "runs/first/checkpoints/step-00000020: no such checkpoint" in text
    (tmp_path / "store" / "second").rename(tmp_path / "store" / "as-it-was")
    code, text = train(*words, "phases.0.lr=1e-4", nodes=elsewhere)
    assert code == 0, text
    assert "files came from" in text
    runs = [nodes[0] / "runs" / "second" for nodes in (first, elsewhere)]
    assert exactly(runs[0]) == exactly(runs[1])
    assert [line["step"] for line in metrics(runs[1])] == [21, 22, 23, 24]


def test_nodes_without_a_shared_folder_roll_back_and_find_a_run_complete_together(
    tiny, train, tmp_path, new_nodes
):
    nodes = new_nodes(2)
    for folder in nodes:
        (folder / "spikes.py").write_text(SPIKES)
    words = [
        tiny.write(tmp_path / "recipe.yaml", runs_dir="runs", phases__slots=16 * 4 * 512),
        f"store={tmp_path}/store",
        "callbacks.spikes={use: 'spikes:Spikes', step: 14}",
        "faults.spikes={action: rollback, window_steps: 8, threshold: 30}",
        "faults.hang_timeout=30s",
        "checkpoint.average_best=1",  # averaged/ is on rank 0's node alone
    ]
    code, text = train(*words, nodes=nodes)
    assert code == 0, text
    run = nodes[0] / "runs" / "tiny"
    assert len(metrics(run, "rollback")) == 1
    skipped = [(line["step"], line["reason"]) for line in metrics(run, "skipped_step")]
    assert skipped == [(14, "ledger")]
    code, text = train(*words, nodes=nodes)
    assert code == 0, text
    assert "the run is complete at step 16" in text
