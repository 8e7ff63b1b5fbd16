"""docs/use.md and the model card: their code runs. Bulk embedding survives a kill."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from restomod import cli
from tests.conftest import documents

PAGE = (Path(__file__).parents[2] / "docs" / "use.md").read_text()
TEXTS = documents("prose", 40) * 50


def blocks(text, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
    return [block for kind, block in found if kind == language]


@pytest.fixture(scope="module")
def place(tiny, train, tmp_path_factory):
    """A folder with a trained run, runs/my, and texts.parquet."""
    folder = tmp_path_factory.mktemp("use")
    changes = {"phases__slots": 40 * 2048, "checkpoint__keep": 9, "run_name": "my"}
    recipe = tiny.write(folder / "my.yaml", runs_dir=str(folder / "runs"), **changes)
    code, text = train(recipe)
    assert code == 0, text
    columns = {"id": range(len(TEXTS)), "text": TEXTS, "topic": ["prose"] * len(TEXTS)}
    pq.write_table(pa.table({k: list(v) for k, v in columns.items()}), folder / "texts.parquet")
    return folder


def test_page_and_card_do_what_they_say(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    commands = [line.partition(" #")[0] for block in blocks(PAGE, "") for line in block.split("\n")]
    ran = []
    for command in filter(None, commands):
        words = [word for word in shlex.split(command) if not word.startswith("CUDA_")]
        monkeypatch.setattr(sys, "argv", words)
        assert cli.main() == 0, capsys.readouterr().err
        ran.append(words[1])
    assert ran == ["export", "export", "export", "embed", "embed", "embed"]
    assert (place / "step-40" / "model.safetensors").is_file()
    assert pq.read_schema("vectors/part-000000.parquet").names == ["id", "topic", "vector"]
    assert (place / "shared" / "complete.json").is_file()
    names: dict = {}
    for block in blocks(PAGE, "python"):
        exec(block, names)
    assert names["hidden"].shape[::2] == (2, 32)
    assert names["logits"].shape == (*names["hidden"].shape[:2], 512)
    card = (place / "runs" / "my" / "exported" / "README.md").read_text()
    assert "license: apache-2.0" in card
    (place / "my").symlink_to(place / "runs" / "my" / "exported")  # what the card calls it
    code = blocks(card, "python")
    assert len(code) == 3
    for block in code:
        exec(block, {})


def test_a_killed_command_goes_on_to_the_same_bytes(place, tmp_path):
    def start(out):
        words = ["embed", place / "runs" / "my", place / "texts.parquet", "--out", out]
        words += ["--part-rows", 50]
        program = "import sys; from restomod.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    assert start(tmp_path / "whole").wait() == 0
    killed = start(tmp_path / "out")
    while not (tmp_path / "out" / "part-000002.parquet").exists():
        assert killed.poll() is None
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    there = set(os.listdir(tmp_path / "out"))
    assert "complete.json" not in there
    resumed = start(tmp_path / "out")
    out, _ = resumed.communicate()
    assert resumed.returncode == 0
    assert f"embedded {len(TEXTS)} " not in out
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    again = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.name[0] != "."}
    assert again == whole
