"""Ablations from runs to plots, in seconds: arms of eight steps on the tests' corpus."""

import dataclasses
import math
import os
import xml.etree.ElementTree as ElementTree

from benchmarks.ablations import results
from benchmarks.ablations.arms import ARMS, SMALL
from benchmarks.ablations.corpus import DOMAINS, ROOT
from benchmarks.ablations.runs import Run, small_seed, train_all
from tests.conftest import Tiny

SLOTS = 8 * 1024


def run(name: str, seed: int, *needs: str) -> Run:
    arm = dataclasses.replace(ARMS.get(name, SMALL), measures=("logging.every_steps=1",))
    return Run(f"{name}-{seed}", arm, seed, SLOTS, "1e-3", needs)


def test_two_arms_and_a_tiled_one_come_to_a_table_and_plots(tiny: Tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    ROOT.mkdir(parents=True)
    (ROOT / "tokenizer").symlink_to(tiny.folder / "tokenizer")
    for domain in DOMAINS:
        (ROOT / "mds" / domain).mkdir(parents=True)
        (ROOT / "mds" / domain / "train").symlink_to(tiny.folder / "mds" / domain)
        (ROOT / "mds" / domain / "heldout").symlink_to(tiny.folder / "mds" / "heldout")
    folder, out = tmp_path / "runs", tmp_path / "out"
    small = run("small", small_seed(1))
    runs = [run("base", 1), run("mask_15", 1), run("tiled", 1, small.name), small]
    ended: list[tuple[str, int]] = []
    train_all(runs, folder, 2, lambda run, code: ended.append((run.name, code)))
    failed = [name for name, code in ended if code]
    assert not failed, f"{ended}\n" + (folder / "logs" / f"{failed[0]}.log").read_text()
    assert {name for name, _ in ended} == {run.name for run in runs}

    page = out / "page.md"
    results.write(runs, folder, out, page)
    rows = {row["run"]: row for row in results.read(out / results.CSV)}
    ours, theirs = rows["mask_15-1"]["loss"], rows["base-1"]["loss"]
    told = f"| mask 15 % | 1 | {ours:.3f} | {ours - theirs:+.3f}, one seed |"
    assert told in page.read_text()
    assert rows["mask_15-1"]["predicted_tokens"] < 0.6 * rows["base-1"]["predicted_tokens"]
    assert rows["mask_15-1"]["real_tokens"] == rows["base-1"]["real_tokens"]
    assert math.isfinite(rows["tiled-1"]["loss"])
    for name in ("mask-rate", "tiling"):
        assert ElementTree.parse(out / "page" / f"{name}.svg").getroot().tag.endswith("svg")

    train_all(runs, folder, 2, lambda run, code: ended.append((run.name, code)))
    assert len(ended) == len(runs)  # nothing was trained again
