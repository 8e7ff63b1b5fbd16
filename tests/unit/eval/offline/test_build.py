"""Tasks are built of held-out packages alone, the same again, with one answer a question."""

import json
import re

import harvest
import pytest

from restomod.errors import UserError
from restomod.eval.items import LabelledItems
from restomod.eval.offline.build import Candidate, distinct, offline_items, other_pairs, spread
from restomod.eval.offline.packages import Packages, Seen, choose_packages, find_corpus
from restomod.harvest.heldout import line_hashes
from restomod.harvest.installed import find_sources
from tests.installed import described, install, readme

NAMES = [f"pack{letter}" for letter in "abcdefghijkl"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    for name in NAMES:
        files = {f"{name}/part{n}.py": described(f"{name}{n}", 20) for n in range(5)}
        files[f"{name}/shared.py"] = described("shared", 12)  # the same in all
        install(site, name, files, readme(name))
    for name in ("numpy", "sympy", "networkx", "mpmath"):
        install(site, name, {f"{name}/{n}.py": described(f"{name}{n}", 9) for n in range(3)})
    return site


@pytest.fixture(scope="module")
def corpus(site, tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    options = ["--site-packages", str(site), "--no-stdlib", "--workers", "1", "--out", str(out)]
    assert harvest.main(options) == 0
    return out


@pytest.fixture(scope="module")
def packages(site, corpus):
    return choose_packages(None, corpus, [str(site)])


def test_only_what_the_corpus_held_out_is_used(packages, corpus):
    result = json.loads((corpus / "manifest.json").read_text())["result"]
    names = {source.name for source in packages.sources}
    assert names == set(result["heldout_distributions"])
    assert names
    assert packages.training
    assert not names & packages.training


LINES = [f"the line of number {n} is long enough to count" for n in range(20)]


def candidate(number, query, *lines):
    text = "\n".join(LINES[n] for n in lines)
    return Candidate(f"pack{number % 2}", f"{number}.py", "f", query, text, text)


def test_what_has_no_single_answer_or_is_known_is_dropped_and_counted():
    seen = Seen(frozenset(line_hashes("\n".join(LINES[10:12]))))
    packages = Packages((), frozenset(), seen, "", "")
    candidates = [
        candidate(0, "Find the first", 0, 1, 2),
        candidate(1, "Twice", 3, 4),
        candidate(2, "twice", 5, 6),
        candidate(3, "Half of it was trained on", 10, 11, 7, 8),
        candidate(4, "A third of it was trained on", 10, 9, 13),
    ]
    kept, dropped = distinct(candidates, packages)
    assert {c.query for c in kept} == {"Find the first", "A third of it was trained on"}
    assert dropped == {"the question stands more than once": 2, "repeats training text": 1}
    nearly = [candidate(5, "One", 0, 1, 2, 3), candidate(6, "Other", 0, 1, 14, 15)]
    kept, dropped = distinct(nearly, packages)
    assert len(kept) == 1
    assert dropped == {"nearly another item": 1}


def test_no_package_gives_more_than_a_tenth():
    many = [candidate(n, f"Ask {n}", n % 20) for n in range(0, 200, 2)]
    few = [candidate(n, f"Ask {n}", n % 20) for n in range(1, 9, 2)]
    chosen = spread([*many, *few], 80)
    assert [c.distribution for c in chosen].count("pack0") == 8
    assert len(chosen) == 12


def test_questions_have_one_answer_and_repeat_no_training_text(packages, tmp_path):
    items = offline_items("functions", 100, packages, tmp_path)
    assert len(items.queries) >= 10
    assert len(set(items.queries)) == len(set(items.documents)) == len(items.queries)
    assert items.relevant == [{n: 1} for n in range(len(items.queries))]
    assert set(items.groups) == set(items.about["distributions"])
    text = "\n".join(items.queries)
    assert "shared" not in text
    assert sum(items.about["dropped"].values()) > 0
    for document in items.documents:
        assert document.startswith("def _(values_of_")
        assert '"""' not in document


def test_names_stay_where_they_are_asked_for(packages, tmp_path):
    items = offline_items("functions-named", 100, packages, tmp_path)
    assert all(re.match(r"def \w+_\w+_\d+\(", document) for document in items.documents)


def test_headings_that_every_package_has_are_no_questions(packages, tmp_path):
    items = offline_items("sections", 100, packages, tmp_path)
    assert items.queries
    assert "Installation" not in items.queries
    assert all(
        query.startswith(("How pack", "Reading folders with pack")) for query in items.queries
    )


def test_the_same_tasks_come_again_and_from_the_cache(packages, tmp_path, monkeypatch):
    first = offline_items("functions", 50, packages, tmp_path / "one")
    again = offline_items("functions", 50, packages, tmp_path / "two")
    assert first == again
    monkeypatch.setattr("restomod.eval.offline.build._retrieval", None)
    assert offline_items("functions", 50, packages, tmp_path / "one") == first
    with pytest.raises(TypeError):
        offline_items("functions", 40, packages, tmp_path / "one")


def test_origin_is_learned_from_other_files_and_without_the_packages_name(site, tmp_path):
    packages = choose_packages(None, None, [str(site)])
    assert "no corpus is known" in packages.rule
    assert len(packages.sources) == 2
    items = offline_items("origin", 100, packages, tmp_path)
    assert isinstance(items, LabelledItems)
    assert set(items.train_labels) == set(items.test_labels) == {s.name for s in packages.sources}
    for text, label in zip(items.test_texts, items.test_labels, strict=True):
        assert label not in text
    assert not set(items.train_texts) & set(items.test_texts)


def test_pairs_to_fit_on_are_out_of_training_packages(packages, site):
    pairs = other_pairs(packages, find_sources([str(site)]), 30)
    assert len(pairs["queries"]) == len(pairs["documents"]) == 30
    assert set(pairs["distributions"]) <= packages.training


def test_a_run_leads_to_its_corpus(corpus, tiny, tmp_path, monkeypatch):
    run, data = tmp_path / "run", tmp_path / "mds"
    run.mkdir()
    data.mkdir()
    written = {"script": "write_mds.py", "inputs": [{"path": f"{corpus}/code/train.jsonl"}]}
    (data / "manifest.json").write_text(json.dumps(written))
    tiny.write(run / "config.yaml")
    assert find_corpus(run) is None
    streams = {stream: {"path": str(data)} for stream in ("code", "prose", "science")}
    tiny.write(run / "config.yaml", data__streams=streams)
    assert find_corpus(run) == corpus
    assert find_corpus(run / "exported") == corpus
    assert find_corpus(tmp_path / "elsewhere") is None


def test_a_folder_that_is_no_corpus_or_holds_out_nothing_that_is_installed_is_refused(
    corpus, tmp_path
):
    with pytest.raises(UserError, match=r"is no corpus of data_prep/harvest\.py"):
        choose_packages(None, tmp_path)
    with pytest.raises(UserError, match="none of its held-out distributions is installed"):
        choose_packages(None, corpus, [str(tmp_path)])
