"""Memory, hours and prices of the plan, by hand and beside published figures."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from restomod.gpus import GPUS, peak_flops_of
from restomod.model.memory import phase_memory, resident
from restomod.recipe import load_recipe
from restomod.tools.plan.memory import USED, strategies
from restomod.tools.plan.parts import Target
from restomod.tools.plan.plan import make_plan

ROOT = Path(__file__).parents[4]
HOURS = {"base": (191.1, 36.3, 7.5), "large": (420.4, 75.1, 15.3)}
"""Training hours of each phase on 8 H100s (arXiv 2412.13663, table 3)."""


@pytest.fixture(scope="module")
def published():
    """The shipped recipes; the large one's pretraining is one phase, at another learning rate."""
    recipes = ROOT / "yamls" / "recipes"
    return {
        name: load_recipe([recipes / f"modernbert-{name}.yaml"], ["parallel.strategy=ddp"])
        for name in HOURS
    }


@pytest.mark.parametrize("size", HOURS)
def test_hours_are_the_flops_over_mfu_peak_and_gpus(published, size):
    """Tokens, FLOPs of a token by hand, and what they take on 8 H100s."""
    recipe = published[size]
    model = recipe.model
    plan = make_plan(recipe, Target(8, 8, "h100", mfu=0.4, price=2.0))
    for cost, tokens, length in zip(
        plan.costs, (1.719e12, 250e9, 50e9), (1024, 8192, 8192), strict=True
    ):
        d, i, layers = model.hidden_size, model.intermediate_size, model.layers
        predicted = 0.3 * (length - 2) / length
        linear = 6 * (layers * (4 * d * d + 3 * d * i) + predicted * (d * d + d * 50_368))
        whole = -(-layers // 3)
        near = 129 - 64 * 65 / length  # the window's halves end with the document
        attention = 12 * d * (whole * length + (layers - whole) * near)
        assert cost.flops == pytest.approx(tokens * (linear + attention), rel=1e-3)
        assert cost.seconds == pytest.approx(cost.flops / (0.4 * 989e12 * 8))
    hours = sum(cost.seconds for cost in plan.costs) / 3600
    assert f"{hours:.1f} hours, {8 * hours:,.0f} GPU hours, ${16 * hours:,.0f}" in plan.text()


def test_the_documents_table_is_what_the_plan_says(published):
    """docs/plan.md: phase, published hours, the plan's at 40 %, the MFU of the published ones."""
    text = (ROOT / "docs" / "plan.md").read_text()
    expected = []
    for size, recipe in published.items():
        plan = make_plan(recipe, Target(8, 8, "h100", mfu=0.4))
        for cost, hours in zip(plan.costs, HOURS[size], strict=True):
            planned = cost.seconds / 3600
            speed = cost.phase.total_slots / (hours * 3600) / 8
            expected.append(
                f"| {size}, {cost.phase.name} | {cost.flops:.3g} | {hours} | {planned:.1f} "
                f"| {0.4 * planned / hours:.1%} | {speed / 1e3:.0f} k |"
            )
    found = re.findall(r"^\| (?:base|large), .*$", text, re.MULTILINE)
    assert found == expected


def test_what_fits_is_the_largest_micro_batch_under_the_limit(published):
    recipe, target = published["base"], Target(8, 8, "h100")
    phase = replace(recipe.phases[0], batch_warmup=type(recipe.phases[0].batch_warmup)())
    recipe = replace(recipe, phases=[phase])
    (section,) = (s for s in make_plan(recipe, target).sections if s.title.startswith("memory"))
    rows = {row[0].removesuffix(" *"): row for row in section.table.rows}
    assert rows.keys() == strategies(recipe, target).keys()
    for name, shards in strategies(recipe, target).items():

        def peak(n, shards=shards):
            memory = phase_memory(recipe, phase, 50_368, "cuda", shards, 8, n)
            return resident(memory, "cuda")

        most, dividing = int(rows[name][-2]), int(rows[name][-1])
        assert peak(most) <= USED * 80e9 < peak(most + 1)
        assert 36 % dividing == 0
        assert not any(36 % n == 0 for n in range(dividing + 1, most + 1))
    assert int(rows["ddp"][-2]) >= 6  # its authors trained with 6 x 16,384 tokens


@pytest.mark.parametrize(("ranks", "node", "hsdp"), [(4, 2, {"hsdp, 2 ranks": 2}), (4, 4, {})])
def test_strategies_divide_weights_by_the_ranks_that_share_them(tiny, tmp_path, ranks, node, hsdp):
    path = tiny.write(tmp_path / "recipe.yaml")
    recipe = load_recipe([path])
    target = Target(ranks, node)
    fsdp = "fsdp" if hsdp else "fsdp, hsdp"
    assert strategies(recipe, target) == {"ddp": 1, fsdp: ranks, **hsdp}
    assert strategies(recipe, Target(1, 1)) == {"one rank": 1}
    plan = make_plan(load_recipe([path], ["parallel.strategy=hsdp"]), target)
    (section,) = (s for s in plan.sections if s.title.startswith("memory"))
    marked = [row[0] for row in section.table.rows if row[0].endswith("*")]
    assert marked == [f"{[*hsdp, fsdp][0]} *"]


def test_a_micro_batch_that_does_not_fit_is_warned_of(published):
    recipe = published["large"]
    text = make_plan(recipe, Target(8, 8, "a100-40gb")).text()
    assert "a micro-batch of 1 row does not fit with ddp; shorter rows would" in text
    phase = replace(recipe.phases[0], micro_batch_rows=4)
    text = make_plan(replace(recipe, phases=[phase]), Target(8, 8, "h100")).text()
    assert "a micro-batch of 4 rows does not fit with ddp; 3 would" in text


def test_half_an_interval_is_lost_in_the_mean(published):
    recipe = published["base"]
    plan = make_plan(recipe, Target(8, 8, "h100", price=3.0))
    lost = 1000 * max(cost.step_s for cost in plan.costs) / 3600 / 2 * 8
    assert f"{lost:,.1f} GPU hours, ${3 * lost:,.2f} a time" in plan.text()
    rules = replace(recipe.checkpoint, every_steps=10_000, keep_every="500B", average_best=3)
    text = make_plan(replace(recipe, checkpoint=rules), Target(8, 8, "h100")).text()
    # 435,891 steps and the phases' ends; 3 newest, 4 of 2.019 T, 3 of each phase
    assert "46 in all; the newest 3 stay and others by the recipe's rules, 16 at most" in text
    assert f"{16 * 12 * 149_655_232 / 1e9:.2f} GB" in text
    assert "between checkpoints; lower checkpoint.every_steps" in text
    assert "1.80 GB each" in text  # 12 bytes for each of 149.7 M parameters


def test_loading_that_does_not_keep_up_is_warned_of(tiny, tmp_path):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")])
    fast = make_plan(recipe, Target(1, 1, "h100", mfu=1.0)).text()
    speed = float(re.search(r"reads ([\d,]+) tokens/s", fast)[1].replace(",", ""))
    assert speed > 5.8e6
    assert f"use {-(-speed // 5.8e6):.0f} data.workers or more" in fast
    assert "keep up" not in make_plan(recipe, Target(1, 1, "h100", mfu=0.0001)).text()


def test_devices_are_known_by_the_names_that_drivers_give_them():
    for name, device in {
        "h100": "NVIDIA H100 80GB HBM3",
        "h100-pcie": "NVIDIA H100 PCIe",
        "h200": "NVIDIA H200",
        "a100-40gb": "NVIDIA A100-SXM4-40GB",
        "a100": "NVIDIA A100-SXM4-80GB",
        "a10": "NVIDIA A10G",
        "l4": "NVIDIA L4",
        "l40s": "NVIDIA L40S",
        "rtx4090": "NVIDIA GeForce RTX 4090",
    }.items():
        assert peak_flops_of(device) == GPUS[name].flops
    for device in ("Quadro", "NVIDIA L40", "NVIDIA RTX A1000"):
        assert peak_flops_of(device) == 0
