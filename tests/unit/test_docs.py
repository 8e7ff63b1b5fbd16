"""The configuration's reference in docs/ is made from the dataclasses, and says all."""

import dataclasses
import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

from restomod.config import Recipe
from restomod.recipe import flatten

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_key_of_a_recipe_with_its_default(hooks):
    page = hooks.configuration().partition("\n## Preparations")[0] + "\n##"
    sections = dict(re.findall(r"^### `([^`]+)`\n(.*?)(?=^##)", page, re.M | re.S))
    for key, value in flatten(dataclasses.asdict(Recipe())).items():
        if {f"{key}.NAME", f"{key}[n]"} & set(sections):
            continue  # a section of its own
        *parents, name = key.split(".")
        section = sections[".".join(parents)] if parents else page
        shown = re.search(rf"^\| `{name}` \| `(.*?)` \|", section, re.M)
        assert shown, key
        assert json.loads(shown[1]) == value, key


def test_every_key_says_what_it_means(hooks):
    page = hooks.configuration()
    rows = re.findall(r"^\| `(\w+)` \|.*?\|(.*)\|$", page, re.M)
    assert len(rows) > 150
    assert [name for name, meaning in rows if not meaning.strip()] == []
    assert "``" not in page  # which would open code that nothing ends


def test_the_navigation_names_every_page():
    nav = (DOCS.parent / "mkdocs.yml").read_text()
    pages = {path.name for path in DOCS.glob("*.md")}
    assert pages | {"configuration.md", "architecture.md", "modules.md"} == set(
        re.findall(r": ([\w-]+\.md)", nav)
    )


def test_the_list_of_modules_has_every_module_with_a_sentence(hooks):
    source = DOCS.parent / "src" / "restomod"
    found = set()
    for heading, rows in re.findall(
        r"^## `([\w/]+)/`\n(.*?)(?=^## |\Z)", hooks.modules(), re.M | re.S
    ):
        folder = source / heading.removeprefix("restomod")
        found |= {folder / name for name in re.findall(r"^\| `(\w+\.py)` \| .+\. \|$", rows, re.M)}
    modules = {path for path in source.rglob("*.py") if path.name != "__init__.py"}
    assert modules - found == set()


def test_the_map_names_every_folder_and_no_module_that_is_not_there():
    root = DOCS.parent
    text = (root / "ARCHITECTURE.md").read_text().partition("## What holds")[0]
    ours = [path for place in ("src", "benchmarks") for path in (root / place).rglob("*.py")]
    for folder in {path.parent.name for path in ours if (root / "src") in path.parents}:
        assert folder == "restomod" or f"{folder}/" in text
    named = set(re.findall(r"\b\w+\.py\b", text))
    assert named - {path.name for path in ours} == {"train.py"}


def test_the_messages_of_the_catalogue_are_in_the_code():
    source = " ".join(path.read_text() for path in (DOCS.parent / "src").rglob("*.py"))
    joined = re.sub(r'"\s+f?"', "", source)  # strings that go on in the next line
    text = (DOCS / "errors.md").read_text()
    quoted = re.findall(r"^\| `([^`]+)`", text, re.M)
    assert len(quoted) > 35
    missing = [words for words in quoted if words not in joined and words not in source]
    assert missing == []


def test_the_public_names_are_listed_and_there(capsys, monkeypatch):
    import restomod
    import restomod.data
    from restomod import cli

    page = (DOCS / "api.md").read_text()
    listed = set(re.findall(r"^\| `(restomod[\w.]*)\(", page, re.M))
    assert listed == {
        f"{module.__name__}.{name}"
        for module in (restomod, restomod.data)
        for name in module.__all__
    }
    monkeypatch.setattr("sys.argv", ["restomod", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    commands = re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.M)
    section = page.partition("## Commands")[2].partition("--help")[0]
    assert len(commands) == 15
    assert set(commands) == set(re.findall(r"`(\w+)`", section)) - {"restomod"}
    for name in listed:
        found = getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])
        assert found.__doc__
    from restomod.model.encoder import MaskedLM

    assert {"encode", "logits", "mlm_loss"} <= set(re.findall(r"`model\.(\w+)\(", page))
    assert all(getattr(MaskedLM, name).__doc__ for name in ("encode", "logits", "mlm_loss"))


def test_files_that_pages_name_are_there():
    root = DOCS.parent
    own = {f"launchers/profiles/{name}.yaml" for name in ("ours", "slurm", "SYSTEM")}
    for page in DOCS.glob("*.md"):
        text = page.read_text()
        named = re.findall(
            r"(?<![\w/.-])(?:src|data_prep|yamls|benchmarks|tests|launchers)/[\w./*-]*\w", text
        )
        inside = re.findall(r"`((?:kernels|model|tools|train|data)/[\w/]+\.py)`", text)
        for name in {*named, *(f"src/restomod/{name}" for name in inside)} - own:
            assert list(root.glob(name)), (page.name, name)
