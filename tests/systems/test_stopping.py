"""Several ranks that are asked to stop where they do not step."""

import json
import shutil
import signal
import threading
import time

import psutil
import pytest

from tests.conftest import Tiny, Trainings, metrics
from tests.ranks import Ranks, fork_server, free_port, rank_variables, train_in_child


def test_ranks_stop_while_another_waits_for_data(tiny: Tiny, tmp_path) -> None:
    recipe = tiny.write(
        tmp_path / "recipe.yaml",
        runs_dir=str(tmp_path),
        phases__slots=500 * 2 * 8192,
        phases__row_tokens=8192,
        phases__batch_rows=2,
        checkpoint__every_steps=1000,
        evaluation__every_steps=1000,
    )
    folder = tmp_path / "tiny"
    ranks = Ranks([recipe], 2, tmp_path / "log")
    while len(metrics(folder)) < 3 and not ranks.ended():
        time.sleep(0.01)
    (loader,) = psutil.Process(ranks.pids[1]).children()
    loader.suspend()
    # Its rank ends as soon as it can end what it waits for.
    threading.Timer(30, loader.resume).start()
    steps = -1
    while steps < len(metrics(folder)):
        steps = len(metrics(folder))
        time.sleep(4)
    ranks.send(signal.SIGTERM, [0])
    ranks.wait(120)
    assert ranks.codes == [75, 75], ranks.printed()
    done = len(metrics(folder))
    assert json.loads((folder / "REQUEUE").read_text()) == {"reason": "SIGTERM", "step": done}
    assert (folder / "checkpoints" / f"step-{done:08d}" / "manifest.json").is_file()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_ranks_stop_while_one_compiles(tiny: Tiny, train: Trainings, tmp_path) -> None:
    recipe = tiny.write(tmp_path / "recipe.yaml", runs_dir=str(tmp_path))
    folder = tmp_path / "tiny"
    code, text = train(
        recipe,
        "compute.compile=always",
        f"cache_dir={tmp_path / 'cache'}",
        world_size=2,
        kill_when=(folder / "metrics.jsonl").exists,
        send=signal.SIGTERM,
        to=range(1),
    )
    assert code == 75, text
    assert metrics(folder) == []
    assert json.loads((folder / "REQUEUE").read_text()) == {"reason": "SIGTERM", "step": 0}


@pytest.mark.parametrize("delay_s", [0.6, 0.9, 1.2, 1.5, 1.8, 2.1])
def test_ranks_stop_while_they_start(tiny: Tiny, tmp_path, delay_s) -> None:
    recipe = tiny.write(tmp_path / "recipe.yaml", runs_dir=str(tmp_path), phases__slots="1M")
    ranks = Ranks([recipe], 2, tmp_path / "log")
    time.sleep(delay_s)
    ranks.send(signal.SIGTERM)
    ranks.wait(120)
    assert ranks.codes == [75, 75], ranks.printed()
    assert json.loads((tmp_path / "tiny" / "REQUEUE").read_text())["reason"] == "SIGTERM"


def test_a_rank_stops_while_it_waits_for_one_that_never_comes(tiny: Tiny, tmp_path) -> None:
    recipe, log = tiny.write(tmp_path / "recipe.yaml", runs_dir=str(tmp_path)), tmp_path / "log"
    words = ([str(recipe)], rank_variables(0, 2, free_port()), str(log))
    rank = fork_server().Process(target=train_in_child, args=words)
    rank.start()
    while rank.is_alive() and (not log.exists() or "attention: cpu" not in log.read_text()):
        time.sleep(0.01)
    time.sleep(0.5)  # now it waits where Python runs no handler
    rank.terminate()
    rank.join(60)
    assert rank.exitcode == 75, log.read_text()
    assert json.loads((tmp_path / "tiny" / "REQUEUE").read_text())["reason"] == "SIGTERM"
