"""Every shipped recipe trains at toy width, through all of its phases, in one process."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import yaml

from restomod.config import Recipe, StreamConfig
from restomod.data.mlm import mask_rate
from restomod.data.shards import ShardedDataset
from restomod.optim.schedules import decay_of_weights, peak_lr, step_factor
from restomod.recipe import load_recipe
from restomod.timeline import Timeline
from tests.conftest import Tiny, metrics
from tests.ranks import fork_server
from tests.toy import STEPS, shrunk

SHIPPED = sorted(
    path
    for path in (Path(__file__).parents[2] / "yamls" / "recipes").glob("*.yaml")
    if path.stem != "demo"  # which `make demo` runs as it is
)
FIRST = "modernbert-base"
"""Of its shape, and not of another, are the weights that other recipes begin from."""


def train_all(recipes: list[str], log: str) -> None:
    """Train one recipe after the other; leave what went wrong beside each."""
    import multiprocessing

    multiprocessing.set_start_method("fork", force=True)
    from restomod.cli import train_main

    with Path(log).open("a") as file, contextlib.redirect_stderr(file):
        for recipe in recipes:
            try:
                wrong = "" if train_main([recipe]) == 0 else Path(log).read_text()[-3000:]
            except BaseException:
                wrong = traceback.format_exc()
            Path(recipe).with_suffix(".json").write_text(json.dumps(wrong))


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each recipe's toy form, what went wrong, and its run."""
    folder = tmp_path_factory.mktemp("recipes")
    paths = sorted(SHIPPED, key=lambda path: path.stem != FIRST)
    for path in paths:
        toy = shrunk(load_recipe([path]), tiny.folder, folder)
        if toy["init"]["weights"]:
            toy["init"]["weights"] = str(folder / "runs" / FIRST)
        (folder / path.name).write_text(yaml.safe_dump(toy))
    names = [str(folder / path.name) for path in paths]
    process = fork_server().Process(target=train_all, args=(names, str(folder / "log")))
    process.start()
    process.join(timeout=300)
    process.kill()
    return folder


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_recipe_trains_through_all_its_phases(path: Path, trained: Path) -> None:
    result = trained / f"{path.stem}.json"
    assert result.exists(), "not reached: " + (trained / "log").read_text()[-3000:]
    assert json.loads(result.read_text()) == ""
    shipped, toy = load_recipe([path]), load_recipe([trained / path.name])
    lines = metrics(trained / "runs" / toy.run_name)
    assert [line["phase"] for line in lines] == [
        phase.name for phase in shipped.phases for _ in range(STEPS)
    ]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert not any(line["skipped_steps"] for line in lines)
    check_schedules(toy, lines)


def test_the_command_in_ettins_head_makes_an_index_of_nested_folders(
    tiny: Tiny, tmp_path: Path
) -> None:
    nested = tmp_path / "raw" / "ettin-decay-data" / "train"
    for n, stream in enumerate(("code", "prose")):
        shutil.copytree(tiny.folder / "mds" / stream, nested / stream / f"split_{n}")
    head = next(path for path in SHIPPED if path.stem == "ettin-17m").read_text()
    (command,) = re.findall(r"^#   (python -c .*)$", head, re.MULTILINE)
    words = [sys.executable, *shlex.split(command)[1:]]
    subprocess.run(words, cwd=tmp_path, check=True)
    whole = [ShardedDataset("s", StreamConfig(path=str(folder)), tmp_path) for folder in (
        nested, *(tiny.folder / "mds" / stream for stream in ("code", "prose"))
    )]  # fmt: skip
    assert whole[0].documents == whole[1].documents + whole[2].documents
    last = len(whole[0].shard_documents) - 1
    theirs = len(whole[2].shard_documents) - 1
    assert np.array_equal(whole[0].tokens(last, 0), whole[2].tokens(theirs, 0))


def check_schedules(toy: Recipe, lines: list[dict]) -> None:
    timeline = Timeline(toy.phases)
    for n, line in enumerate(lines):
        span = timeline.at(n)
        phase, step = span.phase, n - span.first_step
        rate = peak_lr(phase, toy.optimizer) * step_factor(step, phase)
        assert line["lr"] == pytest.approx(rate)
        assert line["weight_decay"] == decay_of_weights(phase, toy.optimizer)
        assert line["mask_rate"] == pytest.approx(mask_rate(phase.mask, phase.slots_before(step)))
        assert line["batch_rows"] == span.batch_rows(n)
