"""Every fenced block of docs/*.md is what it says: commands that their own parsers take, of files
that are there, and YAML that its dataclass takes."""

import ast
import functools
import json
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.ablations.__main__ import make_parser
from restomod import cli
from restomod.config import Recipe
from restomod.eval.suite import Suite, find_suite
from restomod.finetune.config import load_finetune
from restomod.launch.profile import Profile, load_profile
from restomod.prepare.config import Preparation
from restomod.recipe import load_recipe
from restomod.strict import load_strict, load_verbatim, split_words
from restomod.sweep.file import SweepFile, load_sweep
from tests.doc_blocks import DOCS, NOT_RUN, RUN, blocks, commands, reason_not_to_run

ROOT = DOCS.parent
OURS = ("yamls/", "launchers/", "benchmarks/", "tests/", "data_prep/")
"""What paths begin with that must be here, but for the user's launchers/profiles/ours.yaml."""
OTHERS = {
    "docker build": "builds an image",
    "hf download": "fetches from the hub",
    "mkdir -p": "the shell's",
    "npm pack": "fetches a package",
    "ray start": "starts a cluster; tests/systems/test_ray.py has one",
    "ray stop": "likewise",
    "scancel": "needs a Slurm job; tests/systems/test_slurm.py has one",
    "source .venv/bin/activate": "the shell's",
    "tar xzf": "of the package above",
    "tensorboard --logdir": "serves until it is stopped",
    "touch": "the shell's",
    "wandb sweep": "needs W&B's server",
    "wandb sync": "needs W&B's server",
}
"""How commands of other programs begin, and why nothing of them is checked here."""


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def as_is(schema):
    """Nothing is impossible: a block may be a part."""
    return []


def kind_of(tree):
    """Return the dataclass that a YAML of these keys fills."""
    for key, kind in (
        ("sources", Preparation),
        ("method", SweepFile),
        ("tasks", Suite),
        ("slurm", Profile),
    ):
        if key in tree:
            return kind
    return Recipe


@pytest.mark.parametrize("block", blocks(), ids=lambda block: f"{block.page}-{block.language}")
def test_a_block_is_what_its_language_says(block, tmp_path):
    if block.language == "yaml":
        (tmp_path / "block.yaml").write_text(block.body)
        kind = kind_of(yaml.safe_load(block.body))
        if kind is SweepFile:
            load_verbatim(tmp_path / "block.yaml", kind, as_is)
        else:
            load_strict([tmp_path / "block.yaml"], [], kind, as_is)
    elif block.language == "python":
        ast.parse(block.body)
    elif block.language == "json":
        json.loads(block.body)
    else:
        assert block.language in ("", "text"), block


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A folder with the blocks that have a title, under their names."""
    folder = tmp_path_factory.mktemp("shown")
    for block in blocks():
        if block.title:
            (folder / block.title).write_text(block.body)
    return folder


def check(words, shown):
    """Assert that what a command starts takes its words."""
    program, *rest = words
    begins = " ".join(words)
    if other := next((start for start in OTHERS if begins.startswith(start)), ""):
        assert OTHERS[other]
    elif program == "restomod":
        check_ours(cli.parse_command(rest), shown)
    elif words[:2] == ["python", "train.py"]:
        check_recipe(cli.parse_train(words[2:]), shown)
    elif words[:3] == ["python", "-m", "pytest"]:
        assert (ROOT / words[3]).exists()
    elif words[:3] == ["python", "-m", "benchmarks.ablations"]:
        make_parser().parse_args(words[3:])
    elif words[:3] == ["python", "-m", "benchmarks"]:
        check_script("benchmarks", *words[3:])
    elif program == "python":
        check_script(*rest)
    elif program == "torchrun":
        check(tail_of_torchrun(rest), shown)
    elif program in ("composer", "srun"):
        tail = re.sub(r"^((-n|--nodes|--ntasks-per-node) \d+ )+", "", " ".join(rest)).split()
        check(tail if program == "srun" else ["python", *tail], shown)
    elif program == "make":
        target = [word for word in rest if "=" not in word]
        assert re.search(rf"^{target[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif words[:2] == ["pip", "install"]:
        extra = re.fullmatch(r"restomod\[(\w+)\]", rest[1])
        assert extra
        assert f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text()
    else:
        raise AssertionError(f"nothing checks `{begins}`; teach this test how, or OTHERS why not")


@functools.cache
def torchruns_parser():
    from torch.distributed.run import get_args_parser

    return get_args_parser()


def tail_of_torchrun(words):
    parsed = torchruns_parser().parse_args(words)
    start = [] if parsed.no_python else ["python"]
    return [*start, parsed.training_script, *parsed.training_script_args]


def check_script(path, *rest):
    script = ROOT / path
    script = script / "__main__.py" if script.is_dir() else script
    text = script.read_text()
    for word in rest:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in text, (path, word)


def check_ours(arguments, shown):
    """Check the files and settings that a `restomod` command names."""
    for value in vars(arguments).values():
        for word in value if isinstance(value, list) else [value]:
            if isinstance(word, (str, Path)) and str(word).startswith(OURS):
                own = str(word) == "launchers/profiles/ours.yaml"
                assert own or (ROOT / word).exists(), word
    if getattr(arguments, "profile", ""):
        load_profile("launchers/profiles/example.yaml")
    if arguments.command == "sweep" and (ROOT / arguments.file).exists():
        load_sweep(arguments.file)
    if arguments.command == "eval" and arguments.suite and not arguments.suite.endswith(".yaml"):
        find_suite(arguments.suite)
    if arguments.command == "finetune":
        load_finetune(*split_words(arguments.recipe))
    elif arguments.command == "prepare":
        check_recipe(arguments.recipe, shown, Preparation)
    elif "recipe" in arguments and not getattr(arguments, "tokenizer", ""):  # else a data set
        check_recipe(arguments.recipe, shown)


def check_recipe(words, shown, kind=Recipe):
    """Check a recipe's files and overrides: shipped ones whole; in the place of the user's own a
    block of that title or, if no page shows it, the demo's, whose keys are checked."""
    files, overrides = split_words(words)
    demo = "yamls/data/demo.yaml" if kind is Preparation else "yamls/recipes/demo.yaml"
    shipped = [(ROOT / file).exists() for file in files]
    if files and all(shipped) and kind is Recipe:
        load_recipe(files, overrides)
        return
    known = []
    for file, here in zip(files, shipped, strict=True):
        own = shown / file
        assert here or not str(file).startswith(OURS), file
        known.append(file if here else own if own.exists() else demo)
    load_strict(known, overrides, kind, as_is)


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.page)
def test_a_command_is_taken_by_what_it_starts(command, shown):
    try:
        check(command.words, shown)
    except SystemExit:
        pytest.fail(f"{command.page}.md: argparse refuses `{command.text}`")


def test_a_command_is_run_or_has_a_reason_not_to():
    left = [c for c in commands() if c.page not in RUN and not reason_not_to_run(c)]
    assert left == []
    stale = [s for s in NOT_RUN if not any(c.text.startswith(s) for c in commands())]
    assert stale == []


def test_commands_in_running_text_have_options_that_there_are(capsys):
    @functools.cache
    def help_of(command):
        with pytest.raises(SystemExit) as ended:
            cli.parse_command([command, "--help"])
        assert ended.value.code == 0, command
        return capsys.readouterr().out

    found = 0
    for path in DOCS.glob("*.md"):
        text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
        for command, rest in re.findall(r"`restomod ([a-z]+)([^`]*)`", text):
            help_of(command)
            for option in re.findall(r"--[a-z-]+", rest):
                assert option in help_of(command), (path.name, command, option)
            found += 1
    assert found > 40


def test_a_title_stands_for_one_file():
    titles = [block.title for block in blocks() if block.title]
    assert len(titles) == len(set(titles))
