import pytest

from restomod.errors import UserError
from restomod.eval.suite import SUITES, load_suite

NAMES = ("offline", "beir", "mldr", "code", "glue", "superglue")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_suite_is_found_by_its_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = load_suite(name)
    assert suite.name == name
    assert suite.tasks
    assert suite.description


def test_no_shipped_suite_is_left_out_here():
    assert {path.stem for path in SUITES.glob("*.yaml")} == set(NAMES)


def problems(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_suite(str(file))
    return str(error.value)


def test_mistakes_are_told_with_their_line(tmp_path):
    text = (
        "baselines: [randm]\n"
        "tasks:\n"
        "  both: {retrieval: {offline: functions, folder: here}}\n"
        "  none: {}\n"
        "  two: {retrieval: {folder: a}, mteb: {name: SciFact}}\n"
        "  words: {finetune: {settings: {task: regression}, starts_from: both}}\n"
    )
    found = problems(tmp_path, text)
    assert "mine.yaml:1: baselines.0: 'randm' is not one of random, bag, tfidf, minilm" in found
    assert "mine.yaml:3: tasks.both.retrieval: give `offline` or `folder`" in found
    assert "mine.yaml:4: tasks.none: give one of retrieval, classification" in found
    assert "mine.yaml:5: tasks.two: give one of" in found
    assert "tasks.words.finetune.starts_from: 'both' is no fine-tuning of this suite" in found


def test_unknown_keys_and_choices_name_what_there_is(tmp_path):
    found = problems(tmp_path, "tasks:\n  a: {retrieval: {offlin: functions}}\n")
    assert "did you mean `tasks.a.retrieval.offline`" in found
    found = problems(tmp_path, "tasks:\n  a: {mteb: {name: SciFact, style: colbert}}\n")
    assert "'colbert' is not one of single, late" in found
    found = problems(tmp_path, "baselines: [tfidf]\ntasks:\n  a: {mteb: {name: SciFact}}\n")
    assert "tfidf reads all documents at once" in found


def test_a_name_that_is_none_is_answered_with_those_that_are():
    with pytest.raises(UserError, match="there is beir, code, glue, mldr, offline, superglue"):
        load_suite("biir")
    with pytest.raises(UserError, match="no such file"):
        load_suite("nowhere/mine.yaml")
