import json

import pytest

from restomod.errors import UserError
from restomod.eval.encoders import System
from restomod.eval.suite import ClassificationTask, RetrievalTask, Suite
from restomod.eval.tasks import run_classification, run_retrieval


def lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_task_that_no_model_has_vectors_for_is_refused_by_name(tmp_path):
    for name in ("corpus", "queries"):
        lines(tmp_path / "beir" / f"{name}.jsonl", [{"_id": "a", "text": "a text"}])
    (tmp_path / "beir" / "qrels").mkdir()
    (tmp_path / "beir" / "qrels" / "test.tsv").write_text("a\ta\t1\n")
    labelled = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    for name in ("train", "test"):
        lines(tmp_path / "labelled" / f"{name}.jsonl", labelled)
    suite = Suite(data_dir=str(tmp_path))
    late = [System("late", [], tokens=[lambda texts, is_query: []])]
    for run, task in (
        (run_retrieval, RetrievalTask(folder="beir")),
        (run_classification, ClassificationTask(folder="labelled")),
    ):
        with pytest.raises(UserError, match=r"tasks\.mine: no model here has one vector a text"):
            run("mine", task, suite, late, None)
