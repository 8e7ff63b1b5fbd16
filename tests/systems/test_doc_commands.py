"""The commands of the pages in `doc_blocks.RUN` do what they say, in order, on small data."""

import glob
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from restomod import cli
from tests.conftest import documents, metrics
from tests.doc_blocks import DOCS, RUN, blocks, commands, reason_not_to_run
from tests.unit.model.test_flexbert import SETTINGS, composer_state

ROOT = DOCS.parent
SMALL = {"layers": 2, "hidden_size": 32, "heads": 2, "intermediate_size": 48}
PHASE = {"sequence_length": 64, "row_tokens": 512, "batch_rows": 2}
STEP = PHASE["row_tokens"] * PHASE["batch_rows"]
RUNNING = {
    "evaluation": {"every_steps": 4, "rows": 1, "samples": 1},
    "checkpoint": {"every_steps": 2, "keep": 99},
    "logging": {"wandb": {"mode": "disabled"}},
    "data": {"lanes": 2, "workers": 0},
}
HERE = {"execution": {"workers": 1}}
CHANGES = {
    "my-data.yaml": HERE | {"tokenizer": {"vocab_size": 512}, "heldout": {"share": 0.1}},
    "special-data.yaml": HERE | {"heldout": {"share": 0.2}},
    "my.yaml": RUNNING | {"model": SMALL},
    "continue.yaml": RUNNING | {"model": SMALL},
    "mine.yaml": RUNNING | {"model": SMALL},
}
"""What is smaller here than on the pages."""
NEW = ("--out", "--html")


def merge(tree, changes):
    for key, value in changes.items():
        tree[key] = merge(tree.get(key, {}), value) if isinstance(value, dict) else value
    return tree


def shrunk(title, body):
    tree = merge(yaml.safe_load(body), CHANGES.get(title, {}))
    if title == "mine.yaml":  # which the page itself shortens
        return yaml.safe_dump(tree, sort_keys=False)
    for phase in tree.get("phases", ()):
        decays = "decay" in phase["schedule"]
        phase |= PHASE | {"slots": 12 * STEP}
        phase["schedule"] |= {"decay": 2 * STEP} if decays else {}
        phase["schedule"] |= {"warmup": STEP} if "warmup" in phase["schedule"] else {}
    return yaml.safe_dump(tree, sort_keys=False)


def write_texts(path, stream, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}) + "\n" for text in documents(stream, count)]
    path.write_text("".join(lines))


@pytest.fixture(scope="module")
def place(tiny, train, tmp_path_factory):
    """A folder with what the pages take to be there."""
    folder = tmp_path_factory.mktemp("pages")
    for block in blocks():
        if block.title:
            (folder / block.title).write_text(shrunk(block.title, block.body))
    write_texts(folder / "texts" / "mine.jsonl", "code", 200)
    write_texts(folder / "special" / "notes.jsonl", "science", 150)
    for stream in ("web", "code"):
        (folder / "data" / stream).mkdir(parents=True)
        for split, source in (("train", "code"), ("heldout", "heldout")):
            (folder / "data" / stream / split).symlink_to(tiny.folder / "mds" / source)
    (folder / "data" / "theirs").mkdir()
    (folder / "data" / "theirs" / "train").symlink_to(tiny.folder / "mds" / "code")
    (folder / "data" / "tokenizer").symlink_to(tiny.folder / "tokenizer")
    shutil.copytree(ROOT / "launchers", folder / "launchers")
    profiles = folder / "launchers" / "profiles"
    shutil.copy(profiles / "example.yaml", profiles / "ours.yaml")
    (folder / "yamls").symlink_to(ROOT / "yamls")
    (folder / "train.py").symlink_to(ROOT / "train.py")
    write_checkpoints(folder, tiny.folder / "tokenizer")
    return folder


def write_checkpoints(folder, tokenizer):
    """Write a checkpoint of the other repository's with all in it, and one of weights alone."""
    from restomod.model.config import EncoderConfig
    from restomod.model.encoder import MaskedLM
    from restomod.model.flexbert import flexbert_name

    config = EncoderConfig(
        layers=4, hidden_size=32, heads=2, intermediate_size=48, local_window=16, vocab_size=512
    )
    weights = {
        f"model.{flexbert_name(name)}": weight
        for name, weight in MaskedLM(config).state_dict().items()
    }
    torch.save(composer_state(weights, SETTINGS, tokenizer), folder / "ep0-ba4000-rank0.pt")
    torch.save({"state": {"model": weights}}, folder / "bare.pt")
    training = {"max_seq_len": 1024, "model": {"model_config": SETTINGS}}
    (folder / "theirs.yaml").write_text(yaml.safe_dump(training))


@pytest.fixture
def run(place, train, monkeypatch, capsys):
    """Run a command in the place; return what it printed."""
    monkeypatch.chdir(place)

    def start(command):
        words = [path for word in command.words for path in sorted(glob.glob(word)) or [word]]
        if words[:2] == ["python", "train.py"]:
            code, text = train(*words[2:], nodes=[place])
            assert code == 0, text
            return text
        if words[0] == "touch":
            return ""
        assert words[0] == "restomod", command
        words += {"launch": ["--dry-run"], "top": ["--once"]}.get(words[1], [])
        monkeypatch.setattr(sys, "argv", words)
        code = cli.main()
        printed = capsys.readouterr()
        assert code == 0, (command, printed.err)
        return printed.out

    return start


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(page, place, run):
    ran = [command for command in commands(page) if not reason_not_to_run(command)]
    assert ran
    if page == "launch":  # the user's recipe is one for so many ranks there
        recipe = yaml.safe_load((place / "my.yaml").read_text())
        recipe["phases"][0]["batch_rows"] = recipe["data"]["lanes"] = 32
        (place / "my.yaml").write_text(yaml.safe_dump(recipe))
    if page == "watch":
        for name in ("other", "third"):
            shutil.copytree(place / "runs" / "my", place / "runs" / name)
    for command in ran:
        assert run(command) or command.words[0] == "touch", command
        for option in NEW:
            if option in command.words:
                assert Path(command.words[command.words.index(option) + 1]).exists()
    for block in blocks(page):
        if block.language == "python":
            exec(block.body, {})
    if page == "quickstart":
        assert (place / "data" / "mine" / "card.html").is_file()
        assert (place / "runs" / "my" / "exported" / "model.safetensors").is_file()
    if page == "continue":
        told = metrics(place / "runs" / "continued", "eval")
        assert {"general", "special"} <= set(told[-1]["domains"])
        assert {line["phase"] for line in told} == {"stable", "decay"}
