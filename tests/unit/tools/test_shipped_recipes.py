"""What the shipped recipes say of themselves: their heads' commands, docs/recipes.md, full rows."""

import functools
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

from restomod import cli
from restomod.config import Recipe, StreamConfig
from restomod.data.shards import ShardedDataset
from restomod.errors import UserError
from restomod.prepare.config import load_preparation
from restomod.recipe import check_world, load_recipe
from restomod.tools.plan.packing import expected_packing
from restomod.tools.plan.parts import Target
from restomod.tools.plan.plan import make_plan
from restomod.units import parse_slots

ROOT = Path(__file__).parents[3]
SHIPPED = {
    path.stem: path
    for path in sorted((ROOT / "yamls/recipes").glob("*.yaml"))
    if path.stem != "demo"
}
DATA = sorted((ROOT / "yamls/data").glob("*.yaml"))
VOCABULARIES = {"modernbert": 50_368, "bert": 30_528, "mmbert": 256_000}
GPUS = (8, 16, 24, 32, 48, 64)


@functools.cache
def shipped(name: str) -> Recipe:
    return load_recipe([SHIPPED[name]])


def commands(name: str) -> list[str]:
    return re.findall(r"^#\s+(restomod plan .*)$", SHIPPED[name].read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_planning_commands_in_a_recipes_head_work(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where there are no data
    found = commands(name)
    assert any("--gpus 8" in command for command in found)
    for command in found:
        assert f" yamls/recipes/{name}.yaml " in command
        words = shlex.split(command.replace(f"yamls/recipes/{name}.yaml", str(SHIPPED[name])))
        monkeypatch.setattr(sys, "argv", words)
        assert cli.main() == 0, capsys.readouterr().err
        said = capsys.readouterr().out
        assert "does not fit" not in said
        assert "lower checkpoint.every_steps" not in said


def test_the_recipes_streams_come_from_shipped_preparations_or_are_published():
    prepared = [load_preparation([path], []) for path in DATA]
    sources = {f"{one.out}/{source}" for one in prepared for source in one.sources}
    for name in SHIPPED:
        recipe = shipped(name)
        used = {stream for phase in recipe.phases for stream in phase.mixture}
        assert used == recipe.data.streams.keys()
        for stream in (*recipe.data.streams.values(), *recipe.evaluation.streams.values()):
            folder, _, split = stream.path.rpartition("/")
            assert split in ("train", "heldout")
            assert folder in sources or folder.startswith("raw/ettin-")


def test_the_recipes_open_few_enough_shards_on_eight_gpus():
    for name in SHIPPED:
        data = shipped(name).data
        opened = data.lanes // 8 * len(data.streams) * 2 * data.shuffle_shards
        assert opened <= data.shards_open_per_rank, name


def test_the_documents_table_is_what_the_plan_says():
    text = (ROOT / "docs" / "recipes.md").read_text()
    found = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", text, re.MULTILINE))
    assert SHIPPED.keys() <= found.keys()
    for name in SHIPPED:
        assert found[name].startswith(row(name)), name


def row(name: str) -> str:
    """Return the columns of docs/recipes.md that can be worked out."""
    recipe = shipped(name)
    vocabulary = VOCABULARIES[Path(recipe.tokenizer).name]
    plan = make_plan(recipe, Target(8, 8, "h100", vocabulary=vocabulary))
    (count,) = re.findall(r"([\d,]+) parameters,", plan.text())
    slots = sum(parse_slots(phase.slots) for phase in recipe.phases)
    phases = "; ".join(
        f"{parse_slots(phase.slots) / 1e9:,.4g} B at {phase.sequence_length:,}, "
        f"{phase.mask.rate:.0%}" + "".join(f" to {step.rate:.0%}" for step in phase.mask.later)
        for phase in recipe.phases
    )
    hours = sum(cost.seconds for cost in plan.costs) / 3600
    return (
        f"{int(count.replace(',', '')) / 1e6:,.1f} M | {slots / 1e12:.3g} T | {phases} "
        f"| {', '.join(str(n) for n in GPUS if runs_on(recipe, n))} | {hours:.1f}"
    )


def runs_on(recipe: Recipe, gpus: int) -> bool:
    try:
        check_world(recipe, gpus, 8)
    except UserError:
        return False
    return True


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """Documents whose lengths are spread as a crawl's: log-normal, 1,240 tokens in the mean (DCLM's
    752 B tokens in 606 M documents)."""
    folder = tmp_path_factory.mktemp("web")
    generator = np.random.default_rng(0)
    with MDSWriter(out=str(folder / "mds"), columns={"tokens": "ndarray:uint16"}) as writer:
        for length in generator.lognormal(np.log(1240) - 0.5, 1.0, 4000).astype(int):
            writer.write({"tokens": np.ones(max(length, 1), np.uint16)})
    return ShardedDataset("web", StreamConfig(path=str(folder / "mds")), folder)


def test_rows_are_full_in_every_phase(web):
    seen = set()
    for name in SHIPPED:
        recipe = shipped(name)
        for phase in recipe.phases:
            shape = phase.sequence_length, phase.row_tokens
            if shape not in seen:
                seen.add(shape)
                packing = expected_packing(recipe, phase, dict.fromkeys(phase.mixture, web))
                assert packing.efficiency > 0.999, (name, shape, packing.efficiency)
    assert len(seen) > 5
