import numpy as np
import pytest
from scipy.sparse import csr_matrix

from restomod.eval.classification import majority, score_classification
from restomod.eval.items import LabelledItems


@pytest.fixture
def task():
    labels = ["a", "b", "c"] * 20
    return LabelledItems(["x"] * 60, labels, ["y"] * 31, (labels * 2)[:31])


def test_features_that_tell_labels_apart_are_learned_and_noise_is_not(task):
    generator = np.random.default_rng(0)
    own = {label: np.eye(3)[n] for n, label in enumerate("abc")}

    def features(labels, strength):
        right = np.stack([own[label] for label in labels]) * strength
        return right * [1, 100, 1] + generator.normal(size=(len(labels), 3)) * [1, 100, 1]

    clear = [features(labels, 9) for labels in (task.train_labels, task.test_labels)]
    noise = [features(labels, 0) for labels in (task.train_labels, task.test_labels)]
    assert score_classification(task, *clear)["accuracy"].mean() > 0.95
    assert score_classification(task, *noise)["accuracy"].mean() < 0.7
    sparse = score_classification(task, csr_matrix(clear[0]), csr_matrix(clear[1]))
    assert set(sparse["accuracy"]) <= {0.0, 1.0}
    assert sparse["accuracy"].mean() > 0.9


def test_a_label_with_too_few_texts_to_divide_is_learned_all_the_same(task):
    few = LabelledItems(["x"] * 4, ["a", "a", "b", "b"], ["y"] * 2, ["a", "b"])
    features = np.array([[0.0], [0.1], [1.0], [1.1]])
    assert score_classification(few, features, features[[0, 3]])["accuracy"].tolist() == [1, 1]


def test_majority_is_the_share_of_the_commonest_training_label(task):
    assert majority(task) == 11 / 31
