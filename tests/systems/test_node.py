"""The node wrapper around real torchrun agents and ranks, as schedulers start it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from restomod.train.checkpoints.manifest import newest_checkpoint
from tests.conftest import Tiny, Trainings, metrics
from tests.integration.test_resume import exactly
from tests.ranks import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unbroken(tiny: Tiny, train: Trainings, tmp_path_factory: pytest.TempPathFactory):
    """The recipe, and the folder of a run on two ranks that nothing disturbed."""
    recipe = tiny.write(tmp_path_factory.mktemp("recipe") / "recipe.yaml")
    code, text = train(recipe, "run_name=two-ranks", world_size=2)
    assert code == 0, text
    return recipe, tiny.folder / "runs" / "two-ranks"


class Nodes:
    """Wrappers of the nodes of a run, and what they printed."""

    def __init__(self, folder: Path, *words: object, nodes: int = 1, ranks: int = 1, **options):
        endpoint = f"localhost:{free_port()}"
        given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        self.log = folder / "log"
        self.processes = []
        with self.log.open("a") as log:
            for rank in range(nodes):
                command = [sys.executable, "-m", "restomod.launch.node", "--nodes", str(nodes)]
                command += ["--ranks-per-node", str(ranks), "--rendezvous", endpoint, *given, "--"]
                process = subprocess.Popen(
                    [*command, *map(str, words)],
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "NODE_RANK": str(rank), "WANDB_API_KEY": "hidden-value"},
                )
                self.processes.append(process)

    def await_steps(self, folder: Path, steps: int) -> None:
        while self.processes[0].poll() is None and len(metrics(folder)) < steps:
            time.sleep(0.01)

    def ranks(self, node: int) -> list[psutil.Process]:
        below = psutil.Process(self.processes[node].pid).children(recursive=True)
        return [process for process in below if "train.py" in process.cmdline()[2:4]]

    def codes(self) -> list[int]:
        return [process.wait(timeout=120) for process in self.processes]

    @property
    def text(self) -> str:
        return self.log.read_text()


def test_time_limit_signal_saves_and_asks_for_requeue(tiny, unbroken, tmp_path):
    """USR1 to each of two nodes, as Slurm sends it; then the same nodes again."""
    recipe, expected = unbroken
    folder = tiny.folder / "runs" / tmp_path.name
    words = (recipe, f"run_name={folder.name}")
    nodes = Nodes(tmp_path, *words, nodes=2)
    nodes.await_steps(folder, 7)
    for process in nodes.processes:
        process.send_signal(signal.SIGUSR1)
    assert nodes.codes() == [75, 75], nodes.text
    told = json.loads((folder / "REQUEUE").read_text())
    assert told["reason"] == "SIGUSR1"
    assert newest_checkpoint(folder)[1]["step"] == told["step"] == len(metrics(folder))
    nodes = Nodes(tmp_path, *words, nodes=2)
    assert nodes.codes() == [0, 0], nodes.text
    assert exactly(folder) == exactly(expected)
    for rank in range(2):
        logs = folder / "logs" / f"node-{rank}"
        assert len(list(logs.glob("*/attempt_0/0/stderr.log"))) == 2
        starts = [json.loads(line) for line in (logs / "starts.jsonl").read_text().splitlines()]
        assert [start["words"] for start in starts] == [list(map(str, words))] * 2
    everything = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    assert b"hidden-value" not in everything + nodes.text.encode()


def test_signal_to_every_process_of_a_job_saves(tiny, unbroken, tmp_path):
    """As Slurm cancels: torchrun and the loaders get SIGTERM, too."""
    recipe, _ = unbroken
    folder = tiny.folder / "runs" / tmp_path.name
    nodes = Nodes(tmp_path, recipe, f"run_name={folder.name}", "phases.0.slots=200K", ranks=2)
    nodes.await_steps(folder, 7)
    wrapper = psutil.Process(nodes.processes[0].pid)
    below = wrapper.children(recursive=True)
    for process in [wrapper, *below]:
        process.terminate()
    assert nodes.codes() == [75], nodes.text
    assert psutil.wait_procs(below, timeout=0)[1] == []  # torchrun has seen all of them leave
    told = json.loads((folder / "REQUEUE").read_text())
    assert newest_checkpoint(folder)[1]["step"] == told["step"] == len(metrics(folder))


def test_stop_file_is_a_persons_and_no_reason_to_go_on(tiny, unbroken, tmp_path):
    recipe, _ = unbroken
    folder = tiny.folder / "runs" / tmp_path.name
    nodes = Nodes(tmp_path, recipe, f"run_name={folder.name}", "phases.0.slots=200K")
    nodes.await_steps(folder, 3)
    (folder / "STOP").touch()
    assert nodes.codes() == [130], nodes.text


def test_ranks_end_with_a_killed_wrapper(tiny, unbroken, tmp_path):
    recipe, _ = unbroken
    folder = tiny.folder / "runs" / tmp_path.name
    nodes = Nodes(tmp_path, recipe, f"run_name={folder.name}", "phases.0.slots=5M")
    nodes.await_steps(folder, 3)
    below = psutil.Process(nodes.processes[0].pid).children(recursive=True)
    nodes.processes[0].kill()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []


def test_mistake_in_a_recipe_is_told_once_and_starts_nothing(unbroken, tmp_path):
    recipe, _ = unbroken
    nodes = Nodes(tmp_path, recipe, "phases.0.batch_row=4", nodes=2)
    assert nodes.codes() == [2, 2]
    assert nodes.text.count("did you mean") == 1
    assert "torch.distributed" not in nodes.text


def test_mistake_that_only_ranks_find_ends_with_its_code(tiny, unbroken, tmp_path):
    recipe, _ = unbroken
    name = f"run_name={tmp_path.name}"
    nodes = Nodes(tmp_path, recipe, name, "tokenizer=not-there", ranks=2, restarts=50)
    assert nodes.codes() == [2], nodes.text
    assert "not-there" in nodes.text
    # The wrapper looks every second, in which torchrun starts them again a few times.
    assert len(list((tiny.folder / "runs" / tmp_path.name).rglob("attempt_*"))) < 20


def test_node_without_peers_ends_and_wants_to_go_on(tiny, unbroken, tmp_path):
    recipe, _ = unbroken
    alive = tmp_path / "alive"
    name = f"run_name={tmp_path.name}"
    nodes = Nodes(tmp_path, recipe, name, nodes=2, peers_timeout="4s", alive=alive)
    nodes.processes[1].kill()
    assert nodes.processes[0].wait(timeout=60) == 75, nodes.text
    assert "no rank runs here" in nodes.text
    assert alive.exists()


def test_request_before_ranks_run_loses_nothing(tiny, unbroken, tmp_path):
    recipe, _ = unbroken
    nodes = Nodes(tmp_path, recipe, f"run_name={tmp_path.name}", nodes=2)
    nodes.processes[1].kill()
    while "runs /" not in nodes.text:
        time.sleep(0.05)
    nodes.processes[0].terminate()
    assert nodes.processes[0].wait(timeout=60) == 75, nodes.text
