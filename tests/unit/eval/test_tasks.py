import json

import numpy as np
import pytest

from restomod.errors import UserError
from restomod.eval.encoders import Remembering, System
from restomod.eval.suite import ClassificationTask, RetrievalTask, Suite
from restomod.eval.tasks import run_classification, run_retrieval


def lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def tasks(tmp_path):
    """Return a suite, and tasks with what runs them."""
    for name in ("corpus", "queries"):
        lines(tmp_path / "beir" / f"{name}.jsonl", [{"_id": "a", "text": "a text"}])
    (tmp_path / "beir" / "qrels").mkdir()
    (tmp_path / "beir" / "qrels" / "test.tsv").write_text("a\ta\t1\n")
    labelled = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    for name in ("train", "test"):
        lines(tmp_path / "labelled" / f"{name}.jsonl", labelled)
    return Suite(data_dir=str(tmp_path)), [
        (run_retrieval, RetrievalTask(folder="beir")),
        (run_classification, ClassificationTask(folder="labelled")),
    ]


def test_a_task_that_no_model_has_vectors_for_is_refused_by_name(tasks):
    suite, each = tasks
    late = [System("late", [], tokens=[lambda texts, is_query: []])]
    for run, task in each:
        with pytest.raises(UserError, match=r"tasks\.mine: no model here has one vector a text"):
            run("mine", task, suite, late, None)


def test_vectors_that_are_not_finite_are_refused(tasks):
    suite, each = tasks
    diverged = System("step-9", [Remembering(lambda texts, _: np.full((len(texts), 3), np.nan))])
    for run, task in each:
        with pytest.raises(UserError, match=r"tasks\.mine: step-9: its vectors .* not finite"):
            run("mine", task, suite, [diverged], None)
