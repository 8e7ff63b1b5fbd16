"""The README's commands do what it says, on small data."""

import gzip
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import train_tokenizer
import write_mds
import yaml

from restomod import cli
from tests.conftest import documents

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
    if not language
    for line in block.splitlines()
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder in which the README's data preparation has run, with a recipe for it."""
    folder = tmp_path_factory.mktemp("readme")
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents("code", 200))
    table = pyarrow.table({"text": documents("prose", 30)})
    pyarrow.parquet.write_table(table, folder / "heldout.parquet")
    scripts = {"data_prep/train_tokenizer.py": train_tokenizer, "data_prep/write_mds.py": write_mds}
    ran = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS:
            words = shlex.split(command)
            if words[:1] == ["python"] and words[1] in scripts:
                assert scripts[words[1]].main(words[2:]) == 0
                ran += 1
    assert ran == 3
    recipe = {
        "run_name": "my",
        "tokenizer": "data/tokenizer",
        "model": {"layers": 1, "hidden_size": 8, "heads": 1, "intermediate_size": 8},
        "data": {"streams": {"mine": {"path": "data/mds/train"}}},
        "phases": [
            {
                "slots": 8192,
                "sequence_length": 64,
                "row_tokens": 512,
                "batch_rows": 8,
                "mixture": {"mine": 1},
            }
        ],
        "evaluation": {"streams": {"mine": {"path": "data/mds/heldout"}}, "rows": 1},
        "checkpoint": {"every_steps": 1},
        "logging": {"wandb": {"mode": "disabled"}},
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(recipe))
    labelled = [{"text": text, "label": n % 2} for n, text in enumerate(documents("code", 60))]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(x) + "\n" for x in labelled))
    for domain in ("code", "prose", "science"):
        corpus = folder / "data" / "demo" / "corpus" / domain
        corpus.mkdir(parents=True)
        for split, count in (("train", 300), ("heldout", 5)):
            texts = documents(domain + split, count)
            lines = [json.dumps({"text": text}) + "\n" for text in texts]
            (corpus / f"{split}.jsonl").write_text("".join(lines))
    shutil.copytree(ROOT / "yamls", folder / "yamls")
    return folder


def test_commands_on_a_recipe_and_its_run(prepared, train, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    for name in ("my", "other"):
        code, text = train("my.yaml", f"run_name={name}")
        assert code == 0, text
    ran = []
    for command in COMMANDS:
        words = shlex.split(command.replace("s3://corpus/web", "data/mds/train"))
        if words[:1] == ["restomod"]:
            monkeypatch.setattr(sys, "argv", words)
            assert cli.main() == 0, capsys.readouterr().err
            assert capsys.readouterr().out
            ran.append(words[1])
    assert ran == [
        "prepare", "plan", "inspect", "inspect", "doctor", "top", "report", "report", "eval",
        "finetune", "average", "export", "tile", "import",
    ]  # fmt: skip
    assert (prepared / "data" / "demo" / "prepared" / "card.html").is_file()
    assert (prepared / "runs" / "my" / "exported" / "model.safetensors").is_file()


def test_files_that_the_documents_name_are_there():
    for document in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md"):
        text = (ROOT / document).read_text()
        named = re.findall(r"(?:src|data_prep|yamls|docs|benchmarks)/[\w./-]+\w", text)
        named += [
            f"src/restomod/{name}"
            for name in re.findall(r"\b(?:data|train|model|optim)/\w+\.py", text)
        ]
        for name in named:
            name = name.rstrip("/")
            assert (ROOT / name).exists(), f"{document} names {name}"
    for target in re.findall(r"^make (\w+)$", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
