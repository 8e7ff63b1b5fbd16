import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from restomod import config
from restomod.errors import UserError
from restomod.recipe import check_world, flatten, load_recipe, save_recipe

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "yamls" / "recipes").glob("*.yaml"))

GOOD = """\
run_name: good
tokenizer: somewhere
data:
  streams:
    web: {path: data/web}
    code: {path: data/code}
phases:
  - name: pretrain
    slots: 100M
    mixture: {web: 0.7, code: 0.3}
"""


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def refused(*paths, overrides=()):
    with pytest.raises(UserError) as error:
        load_recipe(list(paths), list(overrides))
    return str(error.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_is_valid(path):
    recipe = load_recipe([path])
    check_world(recipe, 1)


def test_overrides_win_and_later_files_win(good, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("optimizer: {lr: 1e-4}\nseed: 3\n")
    recipe = load_recipe(
        [good, more], ["optimizer.lr=1e-3", "phases.pretrain.slots=2.5K", "phases.0.batch_rows=8"]
    )
    assert recipe.optimizer.lr == 1e-3
    assert recipe.seed == 3
    assert recipe.phases[0].slots == "2.5K"
    assert recipe.phases[0].batch_rows == 8
    assert recipe.phases[0].mixture == {"web": 0.7, "code": 0.3}


def test_a_mapping_adds_to_what_is_there_and_an_empty_one_empties_it(good):
    more = load_recipe([good], ["data.streams={prose: {path: x}}"]).data.streams
    assert set(more) == {*load_recipe([good]).data.streams, "prose"}
    held = "evaluation.streams={code: {path: x}}"
    assert set(load_recipe([good], [held]).evaluation.streams) == {"code"}
    assert load_recipe([good], [held, "evaluation.streams={}"]).evaluation.streams == {}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "optimizer.lrr=1",
            "command line: optimizer.lrr: unknown key (value 1); did you mean `optimizer.lr`?",
        ),
        ("lr=1", "command line: lr: unknown key (value 1); did you mean `optimizer.lr`?"),
        ("model.layers=many", "model.layers: 'many' is text, a whole number is expected"),
        ("model.layers=2.5", "model.layers: 2.5 is a number, a whole number is expected"),
        ("optimizer.lr=true", "optimizer.lr: True is true/false, a number is expected"),
        ("optimizer.lr=.inf", "optimizer.lr: inf is a number, a finite number is expected"),
        ("optimizer.lr=", "optimizer.lr: '' is text, a number is expected"),
        ("optimizer.lr=null", "optimizer.lr: None is nothing, a number is expected"),
        (
            "logging.alerts.events=end",
            "logging.alerts.events: 'end' is text, a list is expected: write [end]",
        ),
        ("phases=3", "phases: 3 is a whole number, a list is expected"),
        ("data.streams.web=7", "data.streams.web: 7 is a whole number, a mapping is expected"),
        ("device=tpu", "device: 'tpu' is not one of auto, cpu, cuda"),
        ("phases.0.slots=50X", "phases.0.slots: `50X` is not a number of slots"),
        ("phases.0.slots=0", "phases.0.slots: is missing"),
        ("phases.0.mixture={wb: 1}", "no such stream in data.streams; did you mean `web`?"),
        ("phases.0.mixture.web=-1", "must not be negative"),
        ("phases.0.row_tokens=100", "phases.0.row_tokens: 100 is less than sequence_length 1024"),
        ("phases.0.schedule.warmup=1B", "phases.0.schedule: warmup 1B and decay 0 exceed 100M"),
        ("phases.0.mask.rate=1.0", "phases.0.mask.rate: 1.0: must lie in (0, 1)"),
        ("phases.later.slots=1", "phases holds no later; there is pretrain"),
        ("model.heads=7", "7 heads do not cut hidden_size 768 into even head sizes"),
        ("model.local_window=127", "model.local_window: 127: must be even"),
        ("run_name=../up", "run_name: '../up': use letters"),
        ("optimizer.betas=[0.9]", "optimizer.betas: [0.9]: two numbers"),
        ("optimizer.name=lamb", "optimizer.name: 'lamb' is not one of stable_adamw, adamw, muon"),
        ("optimizer={name: muon, momentum: 1}", "optimizer.momentum: 1.0: must lie in [0, 1)"),
        ("optimizer={name: adamw, clip_norm: -1}", "optimizer.clip_norm: -1.0: must not be"),
        ("optimizer.clip_norm=1", "optimizer.clip_norm: nothing reads it without optimizer.name"),
        ("optimizer.momentum=0.9", "optimizer.momentum: nothing reads it without optimizer.name"),
        ("model.rope_fraction=0.001", "model.rope_fraction: 0.001: must lie in (0, 1] and turn"),
        ("compute.compile=on", "compute.compile: True is true/false, text is expected"),
        ("parallel.strategy=zero", "'zero' is not one of ddp, fsdp, hsdp"),
        ("parallel.reduce_dtype=float16", "'float16' is not one of float32, bfloat16"),
        ("parallel={strategy: hsdp, shard_ranks: 1}", "1: at least two ranks share a copy"),
        ("parallel={strategy: hsdp, shard_ranks: -2}", "-2: at least two ranks share a copy"),
        ("parallel={strategy: fsdp, shard_ranks: 4}", "nothing reads it with parallel.strategy: f"),
        ("parallel.reshard_after_forward=false", "nothing reads it with parallel.strategy: ddp"),
        ("checkpoint.keep=0", "checkpoint.keep: must be positive"),
        ("checkpoint.keep_local=0", "checkpoint.keep_local: must be positive"),
        ("checkpoint.keep_every=5X", "checkpoint.keep_every: `5X` is not a number of slots"),
        ("checkpoint.keep_best=-1", "checkpoint.keep_best: must not be negative"),
        ("checkpoint.average_best=3", "checkpoint.average_best: needs evaluation.streams"),
        ("evaluation.samples=-1", "evaluation.samples: must not be negative"),
        ("evaluation.mask_rates=[0.3,0.3]", "evaluation.mask_rates: must lie in (0, 1), each"),
        ("evaluation.mask_rates=[0.15]", "none mask_rate itself"),
        ("evaluation.sequence_lengths=[4]", "evaluation.sequence_lengths: must be at least 8"),
        ("evaluation.probes.p={text: a}", "evaluation.probes.p.path: is missing"),
        ("logging.tensorboard=maybe", "'maybe' is text, true or false is expected"),
        ("logging.alerts.webhook=https://a.b", "alerts.webhook: is no name of an environment var"),
        ("logging.alerts.events=[stop, crash]", "alerts.events: crash: there is stop, spike"),
        ("logging.alert.webhook=X", "did you mean `logging.alerts`?"),
        ("tokenizer=", "tokenizer: is missing"),
        ("device=3", "command line: device: 3 is not one of auto, cpu, cuda"),
        ("optimizer.name=1.5", "optimizer.name: 1.5 is not one of stable_adamw, adamw, muon"),
        ("seed=99999999999999999999", "is a whole number, one of at most 64 bits is expected"),
        (
            "optimizer.lr=1e300",
            "optimizer.lr: 1e+300 is a number, one within +-3.4e+38 is expected",
        ),
        (f"optimizer.lr=1{400 * '0'}", "is a whole number, one within +-3.4e+38 is expected"),
        ("run_name=???", "run_name: '???' is text, a value is expected"),
        ("data=[]", "command line: data: [] is a list, a mapping is expected"),
        ("phases={a: {slots: 1M}}", "command line: `phases={a: {slots: 1M}}`: "),
        ("seed=!!int", "command line: `seed=!!int`: the value is not valid YAML"),
        ("seed=!!float x", "command line: `seed=!!float x`: the value is not valid YAML"),
        ("seed=!!binary aGk=", "seed: b'hi' is bytes, a whole number is expected"),
        ("seed=${nothing}", "command line: seed: does not resolve: Interpolation key 'no"),
        ("nonsense", "`nonsense` is not an override; write key=value"),
    ],
)
def test_mistakes_are_named(good, override, expected):
    assert expected in refused(good, overrides=[override])


def test_mistakes_in_a_file_carry_file_and_line(good):
    good.write_text(GOOD + "model:\n  layers: 4\n  headss: 3\nsede: 4\n")
    message = refused(good)
    assert f"{good}:13: model.headss: unknown key (value 3); did you mean `model.heads`?" in message
    assert f"{good}:14: sede: unknown key (value 4); did you mean `seed`?" in message


def test_a_key_that_the_command_line_gives_inside_a_mapping_of_the_file_is_said_to_be_from_there(
    good,
):
    good.write_text(GOOD + "model:\n  layers: 4\n")
    message = refused(good, overrides=["model={layers: many, heads: few}"])
    assert "command line: model.layers: 'many' is text" in message
    assert "command line: model.heads: 'few' is text" in message


def test_a_long_value_is_cut_in_the_message(good):
    message = refused(good, overrides=[f"sede=[{', '.join(map(str, range(100)))}]"])
    assert "sede: unknown key (value [0, 1, 2, " in message
    assert "99" not in message


def test_a_yaml_of_answerdotais_code_is_recognised(good):
    good.write_text(GOOD + "train_loader: {name: text}\nmax_duration: 1ba\n")
    message = refused(good)
    assert message.startswith(f"{good}:11: train_loader: this is a YAML of AnswerDotAI/ModernBERT")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\nb: 2\n", ":2:2: is not valid YAML"),
        ("a: 1\na: 2\n", ":2:1: is not valid YAML: found duplicate key a"),
        ("- 1\n", "a recipe is a mapping"),
        ("just words\n", "a recipe is a mapping"),
        ("\t\n", "is not valid YAML"),
        ("a: " + 3000 * "[", "is nested too deeply to be read"),
        ("a: " + 60 * "{a: " + 60 * "}", "is nested too deeply to be read"),
        ("a: &x {b: *x}\n", ":1:4: is not valid YAML"),
        ("a:\n  - b: !!int x\n", ": a.0.b is not what its YAML tag says"),
        (f"a: 1\nb: {5000 * '9'}\n", ": b is not what its YAML tag says"),
        ("a:\n  b: !!set {x}\n", ":2: a.b: Value 'set' is not a supported"),
        ("a:\n  - b: ${\n", ":2: a.0.b: no viable alternative"),
        ("a:\n  - b: ${nothing}\n", ":2: a.0.b: does not resolve: Interpolation key"),
        ("null: 1\n", ": Incompatible key type"),
        ("data: {streams: {1: {path: x}}}", ":1: data.streams.1: this key is a whole number"),
    ],
)
def test_broken_yaml_names_file_and_line(good, text, expected):
    good.write_text(text)
    message = refused(good)
    assert message.startswith(str(good))
    assert expected in message


def test_a_list_of_one_file_and_a_mapping_of_another_are_refused(good, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("phases:\n  pretrain: {slots: 1M}\n")
    assert f"{more}:1: phases: a list and a mapping do not merge" in refused(good, more)


def test_text_that_looks_like_a_reference_survives_saving(good, tmp_path):
    good.write_text(GOOD + "card: {description: '\\${x} and \\\\\\${y} cost $1'}\n")
    recipe = load_recipe([good])
    assert recipe.card.description == "${x} and \\${y} cost $1"
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe([tmp_path / "saved.yaml"]) == recipe


def test_a_reference_on_the_command_line_is_to_the_recipe(good):
    assert load_recipe([good], ["tokenizer=data/${run_name}"]).tokenizer == "data/good"


def test_a_file_that_can_be_read_once_is_enough(good):
    read, write = os.pipe()
    os.write(write, good.read_bytes())
    os.close(write)
    assert load_recipe([f"/dev/fd/{read}"]) == load_recipe([good])
    os.close(read)


def test_missing_file_is_named_and_where_it_was_looked_for(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"nowhere.yaml: no such file in {tmp_path}" in refused("nowhere.yaml")
    assert refused(tmp_path / "nowhere.yaml") == f"{tmp_path}/nowhere.yaml: no such file"
    assert "to set a key, write optimizer.lr=VALUE" in refused(good, "optimizer.lr")


def test_world_that_does_not_divide_names_the_nearest(good):
    recipe = load_recipe([good], ["data.lanes=12", "phases.0.batch_rows=10"])
    check_world(recipe, 2)
    with pytest.raises(UserError) as error:
        check_world(recipe, 8)
    message = str(error.value)
    assert (
        "12 lanes cannot be shared by 8 ranks; use 6 or 12 ranks, or, for a new run, 8 or 16 lanes"
        in message
    )
    assert "10 rows are not divided by 8 ranks x 1 row of a micro-batch; use 8 or 16" in message
    recipe.phases[0].micro_batch_rows = 4
    with pytest.raises(UserError, match="use 8 or 16"):
        check_world(recipe, 2)
    recipe.phases[0].batch_rows = 1
    with pytest.raises(UserError, match="1 row is not divided by 2 ranks x 4 rows"):
        check_world(recipe, 2)


def test_groups_of_shards_divide_the_ranks(good):
    recipe = load_recipe([good], ["parallel.strategy=hsdp", "data.lanes=24"])
    recipe.phases[0].batch_rows = 24
    check_world(recipe, 12, 4)
    check_world(recipe, 1, 1)
    with pytest.raises(UserError, match=r"groups of 8 ranks do not divide 12 ranks; use 6 or 12"):
        check_world(recipe, 12, 8)
    with pytest.raises(UserError, match=r"a node runs one; set parallel.shard_ranks, or use fsdp"):
        check_world(recipe, 12, 1)
    recipe.parallel.shard_ranks = 6
    check_world(recipe, 12, 1)
    check_world(recipe, 12, 8)
    check_world(recipe, 1, 1)  # one process shares nothing
    recipe.parallel.shard_ranks = 8
    with pytest.raises(UserError, match="use 4"):
        check_world(recipe, 4)


@pytest.mark.parametrize(
    ("strategy", "shard_ranks", "world_size", "node_ranks", "shards"),
    [
        ("ddp", 0, 16, 8, 1),
        ("fsdp", 0, 16, 8, 16),
        ("hsdp", 0, 16, 8, 8),
        ("hsdp", 4, 16, 8, 4),
        ("fsdp", 0, 1, 1, 1),
        ("hsdp", 4, 1, 1, 1),
    ],
)
def test_ranks_that_share_a_copy(strategy, shard_ranks, world_size, node_ranks, shards):
    parallel = config.ParallelConfig(strategy, shard_ranks)
    assert parallel.shards(world_size, node_ranks) == shards


def test_saved_recipe_loads_as_the_same(good, tmp_path):
    recipe = load_recipe([good])
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe([tmp_path / "saved.yaml"]) == recipe
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["phases"][0]["name"] == "pretrain"
    assert flatten(recipe)["phases.pretrain.mask.rate"] == 0.3


def test_every_option_has_a_reader():
    """Each field of the schema is read by something other than the checks of it."""
    sources = "".join(
        path.read_text()
        for path in (ROOT / "src").rglob("*.py")
        if path.name not in ("recipe.py", "impossible.py", "impossible_phase.py")
    )
    sections = [kind for name, kind in vars(config).items() if name.endswith("Config")]
    assert len(sections) > 14
    for section in [*sections, config.Recipe]:
        for field in dataclasses.fields(section):
            assert re.search(rf"\.{field.name}(_slots)?\b", sources), (section, field.name)


@pytest.mark.parametrize("arguments", [["--help"], ["RECIPE", "optimizer.lrr=1"], ["RECIPE"]])
def test_help_and_mistakes_import_no_torch(good, arguments, tmp_path):
    script = (
        "import json, sys\nfrom restomod.cli import train_main\n"
        "try:\n    code = train_main(json.loads(sys.argv[1]))\n"
        "except SystemExit as exit:\n    code = exit.code\n"
        "print([m for m in ('torch', 'composer', 'transformers') if m in sys.modules])\n"
        "sys.exit(code)"
    )
    words = [str(good) if word == "RECIPE" else word for word in arguments]
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert done.returncode == (0 if arguments == ["--help"] else 2), done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.yaml"]
