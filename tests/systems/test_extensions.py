"""The example of docs/extend.md in runs, a source of documents, and a transform of text."""

import re
import sqlite3
from pathlib import Path

import pytest
import yaml
from streaming import MDSWriter

from tests.conftest import documents, metrics

PAGE = (Path(__file__).parents[2] / "docs/extend.md").read_text()
TRANSFORM = """
from dataclasses import dataclass


@dataclass
class Replace:
    old: str = ""
    new: str = ""

    def __call__(self, text):
        return text.replace(self.old, self.new)
"""


@pytest.fixture(scope="module")
def extended(tiny, train, tmp_path_factory):
    """The example's recipe on top of a small one, and how to start it."""
    folder = tmp_path_factory.mktemp("extended")
    (folder / "my_extras.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.S)[1])
    (folder / "my_texts.py").write_text(TRANSFORM)
    example = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])
    recipe = tiny.write(folder / "recipe.yaml", phases__schedule=example["phases"][0]["schedule"])
    (folder / "extras.yaml").write_text(
        yaml.safe_dump({key: example[key] for key in ("callbacks", "evaluation", "optimizer")})
    )

    def start(*words, **options):
        return train(recipe, folder / "extras.yaml", *words, nodes=[folder], **options)

    return start


def test_the_example_measures_and_goes_on_after_a_kill(tiny, extended):
    runs = tiny.folder / "runs"
    code, text = extended("run_name=extended")
    assert code == 0, text
    whole = metrics(runs / "extended", "norms")
    assert [line["step"] for line in whole] == list(range(2, 25, 2))
    assert [line["written"] for line in whole] == list(range(1, 13))
    hooks = [line["hooks"]["house"]["cosine"] for line in metrics(runs / "extended", "eval")]
    assert len(hooks) == 3
    assert all(-1 <= cosine <= 1 for cosine in hooks)
    losses = [line["loss"] for line in metrics(runs / "extended")]
    assert losses[-1] < losses[0] - 0.3
    rates = [line["lr"] for line in metrics(runs / "extended")][-4:]
    left = [(2 ** (-8 * passed) - 2**-8) / (1 - 2**-8) for passed in (1 / 8, 3 / 8, 5 / 8, 7 / 8)]
    assert rates == pytest.approx([1e-3 * share for share in left])

    killed = runs / "killed"
    code, _ = extended("run_name=killed", kill_when=lambda: len(metrics(killed)) >= 13)
    assert code == -9
    code, text = extended("run_name=killed")
    assert code == 0, text
    assert metrics(killed, "resume")
    drop = ("time_s",)
    assert [line["loss"] for line in metrics(killed)] == losses
    told = [{k: v for k, v in x.items() if k not in drop} for x in metrics(killed, "norms")]
    assert told == [{k: v for k, v in x.items() if k not in drop} for x in whole]


def test_a_transform_changes_what_is_trained_on_and_is_guarded(tiny, extended, tmp_path):
    for name, change in (("plain", lambda t: t), ("changed", lambda t: t.replace("co", "sc"))):
        with MDSWriter(out=str(tmp_path / name), columns={"text": "str"}) as writer:
            for text in documents("code", 150):
                writer.write({"text": change(text)})
    shared = ["data.streams.code.column=text", "phases.0.slots=8192"]

    def digests(run, folder, *words):
        path = f"data.streams.code.path={tmp_path / folder}"
        code, text = extended(f"run_name={run}", path, *shared, *words)
        assert code == 0, text
        return [line["data_digest"] for line in metrics(tiny.folder / "runs" / run)]

    replace = "data.streams.code.transform={use: 'my_texts:Replace', old: co, new: sc}"
    transformed = digests("transformed", "plain", replace)
    assert transformed == digests("written", "changed")
    assert transformed != digests("untouched", "plain")
    code, text = extended(
        "run_name=transformed", f"data.streams.code.path={tmp_path / 'plain'}", *shared,
        "phases.0.slots=16384",
    )  # fmt: skip
    assert code == 2
    assert "data.streams.code.transform" in text


def test_a_source_of_ones_own_is_read_as_a_folder_is_and_a_change_of_it_refused(
    tiny, extended, tmp_path
):
    texts = documents("code", 150)
    with MDSWriter(out=str(tmp_path / "mds"), columns={"text": "str"}) as writer:
        for text in texts:
            writer.write({"text": text})
    database = tmp_path / "texts.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE texts (text)")
        connection.executemany("INSERT INTO texts VALUES (?)", [[text] for text in texts])
    own = (
        "data.streams.code.path=''",
        f"data.streams.code.source={{use: 'my_extras:Table', database: {database}}}",
    )
    folder = (f"data.streams.code.path={tmp_path / 'mds'}", "data.streams.code.column=text")

    def start(run, *words):
        code, text = extended(f"run_name={run}", *words)
        return code, text, [x["data_digest"] for x in metrics(tiny.folder / "runs" / run)]

    code, text, digests = start("table", *own, "phases.0.slots=8192")
    assert code == 0, text
    code, text, of_folder = start("folder", *folder, "phases.0.slots=8192")
    assert code == 0, text
    assert digests == of_folder
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO texts VALUES ('one more')")
    code, text, _ = start("table", *own, "phases.0.slots=16384")
    assert code == 2
    assert "data.streams.code" in text
