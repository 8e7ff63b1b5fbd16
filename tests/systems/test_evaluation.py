"""Evaluation in runs: views, probes and samples change nothing of training, on one rank or more."""

import json
import math

import pytest
import yaml

from restomod.eval.heldout import evaluate_run
from tests.conftest import documents, metrics
from tests.distributed.test_world_size import assert_same

VALUES = (
    "evaluation.every_steps=5",
    "evaluation.mask_rates=[0.3,0.6]",
    "evaluation.sequence_lengths=[16,128,1024]",
)


@pytest.fixture(scope="module")
def evaluated(tiny, train, tmp_path_factory):
    """Two runs: with all that evaluation offers, and without any."""
    folder = tmp_path_factory.mktemp("evaluated")
    labelled = folder / "streams.jsonl"
    texts = [(text, name) for name in ("code", "prose") for text in documents(name, 60)]
    labelled.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in texts))
    recipe = tiny.write(folder / "recipe.yaml")
    words = [*VALUES, f"evaluation.probes.streams={{path: {labelled}}}"]
    code, text = train(recipe, "run_name=evaluated", *words)
    assert code == 0, text
    blind = {key: value for key, value in tiny.recipe.items() if key != "evaluation"}
    (folder / "blind.yaml").write_text(yaml.safe_dump(blind))
    code, text = train(folder / "blind.yaml", "run_name=blind")
    assert code == 0, text
    return recipe, words


def test_losses_are_bit_equal_with_and_without_evaluation(tiny, evaluated):
    seen, blind = (metrics(tiny.folder / "runs" / name) for name in ("evaluated", "blind"))
    assert not metrics(tiny.folder / "runs" / "blind", "eval")
    keys = ("step", "loss", "grad_norm", "data_digest")
    assert [[line[k] for k in keys] for line in seen] == [[line[k] for k in keys] for line in blind]


def test_views_and_probes_are_logged_by_name(tiny, evaluated):
    lines = metrics(tiny.folder / "runs" / "evaluated", "eval")
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 24]
    views = {"mask_0.3", "mask_0.6", "length_16", "length_128", "length_1024"}
    for line in lines:
        assert set(line["views"]) == views
        masked = {v: line["views"][v]["all"]["masked_tokens"] for v in views}
        assert masked["mask_0.6"] == pytest.approx(2 * masked["mask_0.3"], rel=0.1)
        probe = line["probes"]["streams"]
        assert probe["examples"] == 60
        assert probe["majority"] < 0.7 < probe["accuracy"]  # their words differ
    assert lines[-1]["views"]["mask_0.6"]["all"]["loss"] > 0
    assert lines[0]["views"]["length_1024"]["all"]["masked_tokens"] > 0


def test_the_command_finds_what_the_last_evaluation_found(tiny, evaluated):
    run = tiny.folder / "runs" / "evaluated"
    last = metrics(run, "eval")[-1]
    text = evaluate_run(run)
    assert "probe streams" in text
    results = json.loads((run / "evaluation.json").read_text())
    assert results["probes"] == last["probes"]
    for view, domains in last["views"].items():
        for domain, of in domains.items():
            found = results["views"][view][domain]
            assert math.isclose(found["loss"], of["loss"], rel_tol=1e-5)


def test_ranks_that_share_a_model_evaluate_as_one_does(tiny, train, evaluated):
    recipe, words = evaluated
    code, text = train(recipe, "run_name=shared", "parallel.strategy=fsdp", *words, world_size=2)
    assert code == 0, text
    runs = tiny.folder / "runs"
    assert_same(metrics(runs / "shared"), metrics(runs / "evaluated"))
    for ours, alone in zip(
        metrics(runs / "shared", "eval"), metrics(runs / "evaluated", "eval"), strict=True
    ):
        assert ours["probes"]["streams"]["accuracy"] == pytest.approx(
            alone["probes"]["streams"]["accuracy"], abs=0.05
        )
        for view, domains in alone["views"].items():
            assert ours["views"][view]["all"]["loss"] == pytest.approx(
                domains["all"]["loss"], rel=1e-4
            )
