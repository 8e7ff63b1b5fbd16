import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from restomod import cli
from restomod.data.sources import open_sources
from restomod.errors import UserError
from restomod.model.memory import parameters
from restomod.recipe import load_recipe
from restomod.tools.plan.data import mixture_lines, open_streams
from restomod.tools.plan.plan import plan

DEMO = Path(__file__).parents[4] / "yamls" / "recipes" / "demo.yaml"


def test_a_recipe_is_planned_even_without_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = plan(load_recipe([DEMO]), 1)
    assert "not here" in text
    assert "steps of" in text


def test_the_vocabulary_of_a_tokenizer_that_is_not_here_may_be_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_command(DEMO, "--vocabulary", 256_000)
    assert done.returncode == 0, done.stderr
    assert "a vocabulary of 256,000 assumed" in done.stdout
    assert f"{sum(parameters(load_recipe([DEMO]).model, 256_000)):,} parameters" in done.stdout


def test_plan_counts_steps_tokens_and_epochs(tiny, tmp_path):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")])
    text = plan(recipe, 2)
    assert "24 steps of 2,048 slots (4 rows of 512), 49,152 in all" in text
    assert "2 ranks, each with 2 micro-batches of 1 row and 2 of 4 lanes" in text
    tokens = open_sources(recipe).streams["prose"].attributes.tokens
    epochs = f"{0.3 * 49_152 / tokens:.2f} epochs of at most 1000"
    assert f"{tokens:,} tokens (from its manifest), {epochs}" in text
    assert "warning: more than 4 epochs of prose" in text
    sources = open_sources(recipe)
    lanes = 2
    shards = sum(min(lanes * 2 * 4, len(s.shard_documents)) for s in sources.streams.values())
    assert f"each rank opens up to {shards} shards before its first rows" in text
    assert "1000 GB are allowed" in text
    assert "fewer than 27 mean chunks" in text
    assert "memory of a rank, phase pretrain (CPU, float32)" in text
    assert "warnings (2), all of them said above:" in text
    assert "  phase pretrain: more than 4 epochs of prose" in text


def test_plan_warns_where_rows_are_closed_before_they_are_full(tiny, tmp_path):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")], ["phases.0.sequence_length=3"])
    recipe.data.tokens_per_document_min = 12
    assert "one document for every 12 slots, 25% full" in plan(recipe, 1)
    recipe.data.tokens_per_document_min = 3
    assert "is closed at" not in plan(recipe, 1)


def test_parameters_are_those_of_the_model(tiny, tmp_path):
    from restomod.train.initial import build_model

    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")])
    sources = open_sources(recipe)
    model = build_model(recipe, recipe.phases[0], sources)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameters(recipe.model, sources.tokenizer.vocab_size)) == counted


def test_modernbert_base_and_large_have_the_published_size():
    from restomod.config import ModelConfig

    assert sum(parameters(ModelConfig(), 50_368)) == 149_655_232
    large = ModelConfig(layers=28, hidden_size=1024, heads=16, intermediate_size=2624)
    assert sum(parameters(large, 50_368)) == 395_881_664


def test_a_batch_beyond_the_critical_range_is_warned_of(tiny, tmp_path):
    path = tiny.write(tmp_path / "recipe.yaml", data__lanes=64)
    changes = ["phases.0.slots=4M", "phases.0.schedule={}"]
    known = 4_718_592 * (4_000_000 / 1.719e12) ** 0.47  # 10.6 K slots
    for rows, beyond in ((16, False), (32, False), (64, True)):
        text = plan(load_recipe([path], [*changes, f"phases.0.batch_rows={rows}"]), 1)
        assert ("critical range" in text) == beyond == (rows * 512 > 2 * known)


def test_lanes_that_do_not_divide_are_warned_of_or_refused(tiny, tmp_path):
    path = tiny.write(tmp_path / "recipe.yaml", data__lanes=32, phases__batch_rows=32)
    text = plan(load_recipe([path], ["data.workers=3"]), 4)
    assert "8 lanes of a rank do not divide among 3 data.workers" in text
    assert "do not divide" not in plan(load_recipe([path], ["data.workers=4"]), 4)
    text = plan(load_recipe([path], ["data.workers=16"]), 4)
    assert "only 8 of 16 data.workers of a rank have a lane" in text
    text = plan(load_recipe([path]), 32, 8)
    assert "32 lanes do not divide among the 24 ranks that are left without a node" in text
    assert "could go on with 16" in text
    assert "without a node" not in plan(load_recipe([path]), 16, 8)


def test_ranks_that_cannot_share_a_recipe_get_the_plan_of_the_nearest_that_can(
    tiny, tmp_path, monkeypatch, capsys
):
    path = tiny.write(tmp_path / "recipe.yaml", data__lanes=32, phases__batch_rows=16)
    monkeypatch.setattr(sys, "argv", ["restomod", "plan", str(path), "--gpus", "14"])
    assert cli.main() == 0
    text = capsys.readouterr().out
    # 32 lanes suit, but not 16 rows.
    assert "training refuses 14 ranks and takes 8 or 16; this plan is for 16" in text
    assert "data.lanes: 32 lanes cannot be shared by 14 ranks; use 8 or 16 ranks" in text
    assert "phases.pretrain.batch_rows: 16 rows are not divided by 14 ranks" in text
    assert "time and cost on 16 x h100" in text
    assert "16 ranks, each with 1 micro-batch of 1 row and 2 of 32 lanes" in text
    assert text.count("training refuses 14 ranks") == 2  # and among the warnings at the end
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], "64"])
    assert cli.main() == 0
    assert "training refuses 64 ranks and takes 16; this plan is for 16" in capsys.readouterr().out


def run_command(*words):
    """Run `restomod plan` in a process of its own, which must not load torch."""
    code = (
        "import sys; from restomod.cli import main\ncode = main()\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "plan", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_plans_for_gpus_without_torch(tiny, tmp_path):
    path = tiny.write(tmp_path / "recipe.yaml")
    words = ("--gpus", 4, "--ranks-per-node", 2, "--mfu", 0.5, "--price", 3)
    done = run_command(path, *words, "--html", tmp_path / "plan.html", "parallel.strategy=hsdp")
    assert done.returncode == 0, done.stderr
    assert "time and cost on 4 x h100" in done.stdout
    assert "MFU 0.5 x 989 TFLOP/s x 4" in done.stdout
    assert "at $3.00 a GPU hour" in done.stdout
    assert "hsdp, 2 ranks *" in done.stdout
    assert "not measured on a GPU" in done.stdout
    assert "<svg" in (tmp_path / "plan.html").read_text()
    done = run_command(path, "--world-size", 2, "--gpu", "A100")
    assert "time and cost on 2 x a100" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "h1000"], "--gpu h1000: no data sheet of it is here; did you mean h100?"),
        (["--gpu", "A100-80GB"], "no data sheet of it is here; did you mean a100?"),
        (["--gpu", "mi300x"], "no data sheet of it is here. There are b200, h200"),
        (["--mfu", "40"], "--mfu 40: a share of the peak, in (0, 1]"),
        (["--mfu", "0"], "--mfu 0: a share of the peak, in (0, 1]"),
        (["--mfu", "nan"], "--mfu nan: a share of the peak, in (0, 1]"),
        (["--price", "-1"], "--price -1: dollars for a GPU hour, 0 or more"),
        (["--price", "nan"], "--price nan: dollars for a GPU hour, 0 or more"),
        (["--gpus", "4", "--world-size", "2"], "--gpus 4 and --world-size 2: both are the number"),
        (
            ["--gpus", "2", "parallel.shard_ranks=2", "parallel.strategy=ddp"],
            "parallel.shard_ranks",
        ),
        (["--html", "/nowhere/plan.html"], "/nowhere/plan.html: cannot be written: No such"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_message(
    tiny, tmp_path, monkeypatch, capsys, words, message
):
    path = tiny.write(tmp_path / "recipe.yaml")
    monkeypatch.setattr(sys, "argv", ["restomod", "plan", str(path), *words])
    assert cli.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    ("grace", "message"),
    [
        ("60s", "stopping: 60 s are left after a signal; a step and a save took up to 7.5 s"),
        ("12s", "warning: a step and a save took up to 7.5 s in this run, and 12 s are left"),
    ],
)
def test_grace_is_compared_with_what_saving_took(tiny, tmp_path, grace, message):
    recipe = load_recipe(
        [tiny.write(tmp_path / "r.yaml")], [f"faults.grace={grace}", f"runs_dir={tmp_path}"]
    )
    assert "no save was measured yet" in plan(recipe, 1, 1)
    recipe.run_folder.mkdir()
    events = [
        {"event": "checkpoint", "step": 5, "seconds": 6.5},
        {"event": "checkpoint", "step": 10, "seconds": 3.0},
        {"event": "train", "step": 11, "step_s": 1.0},
    ]
    text = "".join(json.dumps(event) + "\n" for event in events)
    (recipe.run_folder / "metrics.jsonl").write_text(text + '{"event": "checkpoint", "st')
    assert message in plan(recipe, 1, 1)


def test_the_plan_names_held_out_data_and_warns_where_it_is_trained_on(tiny, tmp_path):
    path = tiny.write(tmp_path / "recipe.yaml")
    text = plan(load_recipe([path]), 1)
    name = next(iter(load_recipe([path]).evaluation.streams))
    assert f"held out {name}: " in text
    assert "trains on" not in text
    trained = load_recipe([path]).data.streams["prose"].path
    text = plan(load_recipe([path], [f"evaluation.streams.{name}.path={trained}"]), 1)
    assert f"warning: held out {name} is what stream prose trains on ({trained})" in text


def test_a_mistyped_path_is_among_the_warnings(tiny, tmp_path):
    path = tiny.write(tmp_path / "recipe.yaml")
    words = ["data.streams.prose.path=none", "tokenizer=nowhere"]
    text = plan(load_recipe([path], words), 1)
    end = text.rpartition("all of them said above:")[2]
    assert "data.streams.prose: training will not start: none (stream prose): no such data" in end
    assert "tokenizer: training will not start: nowhere: no such tokenizer" in end


def test_the_plan_refuses_data_of_another_tokenizer_as_training_does(tiny, tmp_path):
    path = tiny.write(tmp_path / "recipe.yaml")
    tokenizer = Path(load_recipe([path]).tokenizer)
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    other = tmp_path / "other"
    shutil.copytree(tokenizer, other)
    (other / "tokenizer.json").write_text(json.dumps(content))
    recipe = load_recipe([path], [f"tokenizer={other}"])
    with pytest.raises(UserError) as planned:
        plan(recipe, 1)
    with pytest.raises(UserError) as trained:
        open_sources(recipe)
    assert "holds tokens of another vocabulary" in str(planned.value)
    assert str(planned.value) in str(trained.value)


def test_a_document_that_outweighs_a_lane_is_warned_of(tiny, tmp_path):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")], ["data.lanes=8"])
    streams, missing = open_streams(recipe, None, "data")
    phase = recipe.phases[0]
    name, data = next((n, d) for n, d in streams.items() if phase.mixture.get(n, 0) > 0)
    tokens = data.attributes.tokens

    def warned(longest):
        data.attributes = replace(data.attributes, histogram={8: 500, longest: 1})
        lines = mixture_lines(recipe, phase, streams, missing)
        return any(
            f"is {longest / tokens:.0%} of {name}, and one of 8 lanes" in line for line in lines
        )

    assert not warned(tokens // 3)
    assert warned(3 * tokens // 4)
