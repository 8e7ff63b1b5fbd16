"""A mistake in a preparation's recipe is named with file, line, key and what to do."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from restomod.errors import UserError
from restomod.prepare.config import identity, load_preparation, parse_size

SHIPPED = sorted((Path(__file__).parents[3] / "yamls" / "data").glob("*.yaml"))
MINIMAL = {"out": "out", "sources": {"a": {"paths": ["a.jsonl"]}}}


def load(tmp_path, *overrides, **changes):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
    return load_preparation([path], list(overrides))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path):
    assert load_preparation([path], []).sources


def test_there_is_a_shipped_recipe():
    assert SHIPPED


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("soruces={}", "did you mean `sources`?"),
        ("sources.a.pathes=[x]", "did you mean `sources.a.paths`?"),
        ("min_words=3", "did you mean `quality.min_words`?"),
        ("sources.a.share=-1", "sources.a.share: must be 0 or more"),
        ("sources.a.share=0", "none has a share above 0"),
        ("sources.a.text_fields=[]", "sources.a.text_fields: name at least one"),
        ("sources.a.encoding=utf-16", "sources.a.encoding: utf-16: is no encoding"),
        ("sources.a.encoding=klingon", "sources.a.encoding: klingon: is no encoding"),
        ("sources.a.text_documents=word", "'word' is not one of file, line"),
        ("sources.tokenizer.paths=[x]", "sources.tokenizer: use letters"),
        ("sources.a.paths=[]", "sources.a.paths: is missing"),
        ("out=''", "out: is missing"),
        ("out=s3://bucket/x", "out: is remote, which needs a work_dir"),
        ("work_dir=s3://bucket/x", "work_dir: must be a folder of a file system"),
        ("unit_size=huge", "unit_size: size huge: give a size"),
        ("shards.size=4gb", "shards.size: size 4gb: give a size"),
        ("shards.compression=lz4", "use zstd, zstd:1 to :22, or none"),
        ("normalise.unicode=NFX", "'NFX' is not one of none, NFC, NFD, NFKC, NFKD"),
        ("quality.min_words=-1", "quality.min_words: must lie in 0 .. max_words"),
        ("quality.max_digit_share=2", "quality.max_digit_share: must lie in"),
        ("quality.min_stop_words=99", "quality.min_stop_words: must lie in 0 .. 8"),
        ("quality.max_symbol_word_ratio=-1", "must not be negative"),
        ("reading.max_rejected_share=2", "reading.max_rejected_share: must lie in [0, 1]"),
        ("reading.max_record_mb=0", "reading.max_record_mb: must be above 0"),
        ("decontaminate.ngram=0", "decontaminate.ngram: 0 is outside"),
        ("decontaminate.text_fields=[]", "decontaminate.text_fields: name at least one"),
        ("deduplicate.near.buckets=0", "deduplicate.near.buckets: 0 is outside"),
        ("heldout.share=1", "heldout.share: must lie in [0, 1)"),
        ("tokenizer.vocab_size=5000", "use 4992 or 5056"),
        ("tokenizer.sample_mb=0", "tokenizer.sample_mb: must be above 0"),
        ("tokenizer.model_max_length=0", "tokenizer.model_max_length: must be above 0"),
        ("tokenizer.vocab_size=8388608", "at most 4,194,304 tokens are trained"),
        ("execution.workers=-1", "execution.workers: must not be negative"),
        ("execution.workers=5000", "execution.workers: must not be negative, and at most 1024"),
        ("execution.attempts=0", "execution.attempts: must be above 0"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, override, said):
    with pytest.raises(UserError) as refused:
        load(tmp_path, override)
    assert said in str(refused.value)
    assert "command line" in str(refused.value) or "recipe.yaml" in str(refused.value)


def test_defaults_work_and_who_does_the_work_is_not_part_of_the_identity(tmp_path):
    one = load(tmp_path)
    other = load(tmp_path, "execution.workers=7", "reading.max_rejected_share=1", "work_dir=x")
    assert identity(one) == identity(other)
    assert identity(one) != identity(load(tmp_path, "heldout.share=0.1"))
    assert one.work_folder == Path(".out.work")
    with pytest.raises(UserError, match="a recipe is needed"):
        load_preparation([], [])


def test_sizes():
    assert parse_size("64mb", "size") == 64 << 20
    assert parse_size("2048", "size") == 2048


def test_a_mistake_is_answered_without_the_heavy_libraries(tmp_path):
    (tmp_path / "recipe.yaml").write_text("out: x\nquality: {min_wrds: 3}\n")
    script = (
        "import sys\nfrom restomod import cli\n"
        f"sys.argv = ['restomod', 'prepare', {str(tmp_path / 'recipe.yaml')!r}]\n"
        "code = cli.main()\n"
        "names = ('torch', 'ray', 'streaming', 'datatrove', 'pyarrow', 'fsspec')\n"
        "print(code, [name for name in names if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout.split("\n")[-2] == "2 []"
    assert "recipe.yaml:2" in ended.stderr
    assert "min_words" in ended.stderr
