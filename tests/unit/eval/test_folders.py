import json

import pytest

from restomod.errors import UserError
from restomod.eval.folders import labelled_items, retrieval_items


def lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def beir(tmp_path):
    documents = [
        {"_id": "a", "title": "One", "text": "first"},
        {"_id": "b", "text": "second"},
        {"_id": "c", "title": "", "text": "third"},
    ]
    lines(tmp_path / "corpus.jsonl", documents)
    lines(tmp_path / "queries.jsonl", [{"_id": f"q{n}", "text": f"ask {n}"} for n in range(3)])
    (tmp_path / "qrels").mkdir()
    rows = "query-id\tcorpus-id\tscore\nq2\tc\t2\nq2\ta\t1\nq0\tb\t1\nq1\ta\t0\n"
    (tmp_path / "qrels" / "test.tsv").write_text(rows)
    return tmp_path


def test_a_beir_folder_gives_titles_grades_and_the_judged_queries(beir):
    items = retrieval_items(beir, "test")
    assert items.documents == ["One first", "second", "third"]
    assert items.queries == ["ask 2", "ask 0"]
    assert items.relevant == [{2: 2, 0: 1}, {1: 1}]


def test_what_is_wrong_with_a_beir_folder_is_said(beir):
    with pytest.raises(UserError, match=r"qrels/dev\.tsv is missing; expected corpus\.jsonl"):
        retrieval_items(beir, "dev")
    qrels = beir / "qrels" / "test.tsv"
    qrels.write_text("q0\tb\t1\nq0\tz\t1\n")
    with pytest.raises(UserError, match=r"test\.tsv:2: there is no document z"):
        retrieval_items(beir, "test")
    qrels.write_text("q0\tb\t1\nq0 b 1\n")
    with pytest.raises(UserError, match=r"test\.tsv:2: is not query, document and a whole grade"):
        retrieval_items(beir, "test")
    qrels.write_text("\nq0\tb\t1\n")
    with pytest.raises(UserError, match=r"test\.tsv:1: is not query, document and a whole grade"):
        retrieval_items(beir, "test")
    qrels.write_bytes("q0\té\t1\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"test\.tsv:1: there is no document"):
        retrieval_items(beir, "test")
    qrels.write_text("q0\tb\t0\n")
    with pytest.raises(UserError, match="no query has a right answer"):
        retrieval_items(beir, "test")
    (beir / "queries.jsonl").write_text('{"_id": "q0"}\n')
    with pytest.raises(UserError, match=r"queries\.jsonl:1: has no text"):
        retrieval_items(beir, "test")
    (beir / "queries.jsonl").write_bytes('{"_id": "q0", "text": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"queries\.jsonl:1: is no JSON object in UTF-8"):
        retrieval_items(beir, "test")
    (beir / "queries.jsonl").write_text("q0 what\n")
    with pytest.raises(UserError, match=r"queries\.jsonl:1: is no JSON object"):
        retrieval_items(beir, "test")


def test_labelled_texts_in_folders_are_divided_the_same_way_every_time(tmp_path):
    for label in ("ham", "spam"):
        for n in range(30):
            path = tmp_path / label / f"{n}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{label} number {n}")
    items = labelled_items(tmp_path, 100, {})
    assert len(items.train_texts) + len(items.test_texts) == 60
    assert 10 <= len(items.test_texts) <= 30
    assert not set(items.train_texts) & set(items.test_texts)
    for text, label in zip(items.test_texts, items.test_labels, strict=True):
        assert text.startswith(label)
    (tmp_path / "ham" / "0.json").write_text("spam that tells its label")
    assert labelled_items(tmp_path, 100, {}) == items
    both = labelled_items(tmp_path, 100, {"ham": "fine"})
    assert set(both.train_labels) == {"fine", "spam"}
    few = labelled_items(tmp_path, 12, {})
    assert few.train_texts == items.train_texts[:12]


def test_labelled_texts_in_files_keep_their_split(tmp_path):
    lines(tmp_path / "train.jsonl", [{"text": f"t{n}", "label": n % 2} for n in range(4)])
    lines(tmp_path / "test.jsonl", [{"text": "x", "label": 1}])
    items = labelled_items(tmp_path, 10, {})
    assert sorted(items.train_texts) == ["t0", "t1", "t2", "t3"]
    assert (items.test_texts, items.test_labels) == (["x"], ["1"])
    lines(tmp_path / "train.jsonl", [{"text": "t", "label": 1}])
    with pytest.raises(UserError, match="texts of two labels"):
        labelled_items(tmp_path, 10, {})
    with pytest.raises(UserError, match=r"expected train\.jsonl and test\.jsonl"):
        labelled_items(tmp_path / "nowhere", 10, {})
