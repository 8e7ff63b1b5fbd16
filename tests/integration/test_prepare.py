"""`restomod prepare` from raw text to shards: what goes in comes out, counted, whoever does it."""

import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from restomod import cli
from restomod.config import StreamConfig
from restomod.data.shards import ShardedDataset
from restomod.data.tokenizer import load_tokenizer
from restomod.errors import UserError
from restomod.prepare import executor, pipeline
from restomod.prepare.config import load_preparation

VOLATILE = ("card.html", "timing.json")
EVALUATION = " ".join(f"question{n}" for n in range(40))


def lines(texts, field="text"):
    return "".join(json.dumps({field: text}) + "\n" for text in texts)


def long_documents(stream, count):
    """Return documents of which no two are near duplicates."""
    generator = np.random.default_rng(sum(map(ord, stream)))
    return [
        " ".join(f"{stream[:2]}{n}" for n in generator.integers(0, 3000, size))
        for size in generator.integers(6, 60, count)
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with sources in several formats, with duplicates and damage, and a recipe."""
    folder = tmp_path_factory.mktemp("corpus")
    code, prose = long_documents("code", 300), long_documents("prose", 120)
    (folder / "code").mkdir()
    (folder / "code" / "1.jsonl").write_text(lines(code[:250]) + "{broken\n" + lines([" "]))
    packed = lines([*code[250:], *code[:20], EVALUATION + " and more words"])
    (folder / "code" / "2.jsonl.gz").write_bytes(gzip.compress(packed.encode()))
    table = pa.table({"body": [*prose[:50], prose[7], *prose[50:], prose[60] + " extra"]})
    pq.write_table(table, folder / "prose.parquet", row_group_size=40)
    notes = [f"note number {n} of the files\n" for n in range(9)]
    for number, note in enumerate(notes):
        path = folder / "notes" / f"{number}.txt.zst"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zstandard.compress(note.encode()))
    (folder / "quiz.jsonl").write_text(lines([EVALUATION], "question"))
    recipe = {
        "name": "tests",
        "unit_size": "8kb",
        "sources": {
            "code": {"paths": [f"{folder}/code"], "licence": "MIT", "url": "https://example.org"},
            "prose": {"paths": [f"{folder}/prose.parquet"], "text_fields": ["body"]},
            "notes": {"paths": [f"{folder}/notes/*.zst"], "domain": "prose", "share": 0.5},
        },
        "quality": {"min_words": 4},
        "decontaminate": {"against": [f"{folder}/quiz.jsonl"], "text_fields": ["question"]},
        "tokenizer": {"vocab_size": 384},
        "heldout": {"share": 0.1},
        "shards": {"size": "2kb"},
        "execution": {"workers": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


def run(corpus, out, *overrides, **options):
    recipe = load_preparation([corpus / "recipe.yaml"], [f"out={out}", *overrides])
    return pipeline.prepare(recipe, **options)


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """The output of the recipe, by one process."""
    out = tmp_path_factory.mktemp("made") / "out"
    run(corpus, out)
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]
    return out


def tree(folder):
    """Return {path: content} of what must not depend on who did the work."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in VOLATILE
    }


def stored(out, source, split, cache):
    """Return the token ids of a data set, as the loader reads them."""
    dataset = ShardedDataset(source, StreamConfig(path=str(out / source / split)), cache)
    return [
        dataset.tokens(shard, document).tolist()
        for shard, count in enumerate(dataset.shard_documents)
        for document in range(count)
    ]


def test_every_document_comes_out_once_whole_and_in_order(corpus, made, tmp_path):
    tokenizer = load_tokenizer(made / "tokenizer")
    expected = {
        "code": long_documents("code", 300),
        "prose": long_documents("prose", 120),
        "notes": [f"note number {n} of the files" for n in range(9)],
    }
    for source, texts in expected.items():
        splits = [split for split in ("train", "heldout") if (made / source / split).is_dir()]
        ids = {split: stored(made, source, split, tmp_path) for split in splits}
        wanted = [ids_.tolist() for ids_ in tokenizer.encode_batch(texts)]
        assert sorted(chain(*ids.values())) == sorted(wanted)
        for of_split in ids.values():
            places = [wanted.index(document) for document in of_split]
            assert places == sorted(places)
    assert 10 <= len(stored(made, "code", "heldout", tmp_path)) <= 60


def test_counts_add_up_from_records_to_tokens(made, tmp_path):
    manifest = json.loads((made / "manifest.json").read_text())
    for stages in [manifest["stages"], *(source["stages"] for source in manifest["sources"])]:
        before = stages[0]["documents_in"]
        for stage in stages:
            assert stage["documents_in"] == before
            before = stage["documents_out"]
            assert stage["documents_in"] - before == sum(stage["dropped"].values())
    dropped = {stage["name"]: stage["dropped"] for stage in manifest["stages"]}
    assert dropped == {
        "read": {"broken_json": 1, "empty_document": 1},
        "quality": {},
        "decontaminate": {"contaminated": 1},
        "exact duplicates": {"exact_duplicate": 21},
        "near duplicates": {"near_duplicate": 1},
        "tokenise": {},
    }
    for source in manifest["sources"]:
        assert source["documents"] == source["stages"][-1]["documents_out"]
        assert source["text_bytes"] == source["stages"][-1]["text_bytes_out"]
        assert sum(source["length_histogram"].values()) == source["documents"]
        for split, said in source["splits"].items():
            folder = made / source["name"] / split
            ids = stored(made, source["name"], split, tmp_path)
            attributes = json.loads((folder / "restomod.json").read_text())
            counts = np.load(folder / "token_counts.npy")
            assert said["documents"] == attributes["documents"] == len(ids)
            assert said["tokens"] == attributes["tokens"] == sum(map(len, ids)) == counts.sum()
            assert np.array_equal(counts, np.bincount(np.concatenate(ids), minlength=len(counts)))
    code = manifest["sources"][0]
    assert (code["licence"], code["url"]) == ("MIT", "https://example.org")
    fingerprint = load_tokenizer(made / "tokenizer").fingerprint
    assert manifest["tokenizer"]["fingerprint"] == fingerprint
    assert "contaminated" in (made / "card.html").read_text()


def test_rejects_name_file_and_line_even_where_the_file_was_cut(corpus, made):
    rejects = [json.loads(line) for line in (made / "rejects.jsonl").read_text().splitlines()]
    found = {(r["reason"], Path(r["file"]).name, r["line"]): r for r in rejects}
    assert ("broken_json", "1.jsonl", 251) in found  # four pieces before
    assert ("empty_document", "1.jsonl", 252) in found
    contaminated = found["contaminated", "2.jsonl.gz", 71]
    assert "question0 question1" in contaminated["detail"]
    assert contaminated["text"].startswith("question0")
    assert found["exact_duplicate", "2.jsonl.gz", 51]["detail"].endswith("1.jsonl:1")
    assert found["exact_duplicate", "prose.parquet", 51]["detail"].endswith("prose.parquet:8")
    # What stays is counted behind an exact duplicate in its own unit.
    assert found["near_duplicate", "prose.parquet", 122]["detail"].endswith("prose.parquet:62")


def test_two_processes_write_the_same_bytes(corpus, made, tmp_path):
    run(corpus, tmp_path / "out", "execution.workers=2")
    assert tree(tmp_path / "out") == tree(made)


def test_a_killed_job_goes_on_where_it_was_and_writes_the_same_bytes(
    corpus, made, tmp_path, monkeypatch
):
    script = """
import os, signal, sys
from restomod.prepare import executor, pipeline
from restomod.prepare.config import load_preparation
perform, begun, last = executor.perform, [], int(sys.argv[3])
def killed(task):
    begun.append(task)
    if len(begun) > last:
        os.kill(os.getpid(), signal.SIGKILL)
    return perform(task)
executor.perform = killed
pipeline.prepare(load_preparation([sys.argv[1]], [f"out={sys.argv[2]}"]))
"""
    done = []
    perform = executor.perform

    def recorded(task):
        done.append((task[2], task[3]))
        return perform(task)

    out, work = tmp_path / "out", tmp_path / ".out.work"
    kills = (3, 22)
    for kill in kills:
        command = [sys.executable, "-c", script, str(corpus / "recipe.yaml"), str(out), str(kill)]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert not out.exists()
    finished = {
        (path.parent.parent.name, int(path.stem)): path.stat().st_mtime_ns
        for path in work.glob("*/done/*.json")
    }
    assert len(finished) == sum(kills)
    monkeypatch.setattr(executor, "perform", recorded)
    run(corpus, out)
    assert not set(done) & set(finished)
    assert len(done) == len(set(done))
    assert tree(out) == tree(made)
    assert not work.exists()


def test_a_rerun_is_skipped_and_a_changed_recipe_or_input_refused(corpus, made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    before = tree(out)
    assert "up to date" in run(corpus, out, "execution.workers=3")
    with pytest.raises(UserError, match=r"quality.min_words 4 -> 5.*--refresh"):
        run(corpus, out, "quality.min_words=5")
    assert tree(out) == before
    run(corpus, out, "quality.min_words=5", refresh=True)
    assert json.loads((out / "manifest.json").read_text())["recipe"]["quality"]["min_words"] == 5

    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    recipe = (copy / "recipe.yaml").read_text().replace(str(corpus), str(copy))
    (copy / "recipe.yaml").write_text(recipe)
    run(copy, tmp_path / "other", tokenizer_only=True)
    (copy / "code" / "1.jsonl").write_text(lines(["one word after the other"]))
    with pytest.raises(UserError, match=r"inputs changed: .*1.jsonl"):
        run(copy, tmp_path / "other")
    run(copy, tmp_path / "other", refresh=True)
    assert (tmp_path / "other" / "manifest.json").is_file()


def test_the_tokenizer_alone_is_that_of_the_whole_and_its_work_is_used(
    corpus, made, tmp_path, monkeypatch
):
    reference = made / "tokenizer"
    out = tmp_path / "out"
    said = run(corpus, out, f"tokenizer.reference={reference}", tokenizer_only=True)
    assert "reference" in said
    assert "prose" in said
    name = "tokenizer.json"
    assert (out / "tokenizer" / name).read_bytes() == (reference / name).read_bytes()
    done = []
    perform = executor.perform
    monkeypatch.setattr(executor, "perform", lambda task: done.append(task[2]) or perform(task))
    run(corpus, out, f"tokenizer.reference={reference}")
    assert set(done) == {"tokenise", "write"}
    fertility = json.loads((out / "manifest.json").read_text())["tokenizer"]["fertility"]
    assert fertility["code"]["own"] == fertility["code"]["reference"]


def test_a_tokenizer_that_exists_is_used_and_copied(corpus, made, tmp_path):
    run(corpus, tmp_path / "out", f"tokenizer.path={made / 'tokenizer'}")
    for source in ("code", "prose"):
        for path in sorted((made / source).rglob("*.zstd")):
            other = tmp_path / "out" / path.relative_to(made)
            assert other.read_bytes() == path.read_bytes()
    copied = load_tokenizer(tmp_path / "out" / "tokenizer")
    assert copied.fingerprint == load_tokenizer(made / "tokenizer").fingerprint


def test_too_much_that_is_unreadable_stops_the_job_and_what_was_read_is_kept(
    corpus, tmp_path, monkeypatch
):
    (tmp_path / "in").mkdir()
    good = lines(long_documents("good", 95))
    (tmp_path / "in" / "a.jsonl").write_text(good + "{\n" * 5)
    packed = gzip.compress(lines(long_documents("gz", 500)).encode())
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    recipe = {
        "sources": {"a": {"paths": [str(tmp_path / "in")]}},
        "tokenizer": {"vocab_size": 320},
        "execution": {"workers": 1},
        "heldout": {"share": 0},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"records cannot be read .*max_rejected_share 0.01"):
        run(tmp_path, out)
    allowed = ["reading.max_rejected_share=0.1"]
    with pytest.raises(UserError, match=r"1 of 2 files .*b.jsonl.gz.*max_broken_files_share"):
        run(tmp_path, out, *allowed)
    listed = (tmp_path / ".out.work" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in listed] == [96, 97, 98, 99, 100, 0]
    assert "lost from line" in json.loads(listed[-1])["detail"]
    done = []
    perform = executor.perform
    monkeypatch.setattr(executor, "perform", lambda task: done.append(task[2]) or perform(task))
    run(tmp_path, out, *allowed, "reading.max_broken_files_share=0.5")
    assert "read" not in done
    dropped = json.loads((out / "manifest.json").read_text())["stages"][0]["dropped"]
    assert dropped == {"broken_file": 1, "broken_json": 5}


def test_nothing_left_is_said_with_its_reasons(corpus, tmp_path):
    with pytest.raises(UserError, match=r"no document is left of .*too_few_words"):
        run(corpus, tmp_path / "out", "quality.min_words=100000")
    assert not (tmp_path / "out").exists()


def test_names_that_utf8_cannot_spell_are_listed(corpus, tmp_path):
    named = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    with open(named, "w") as file:
        file.write(lines([f"document number {n} of a few" for n in range(9)]) + '{"\\ud800": 1}\n')
    run(
        corpus,
        tmp_path / "out",
        f"sources.notes.paths=[{tmp_path}]",
        "reading.max_rejected_share=0.5",
    )
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").open()]
    (found,) = (entry for entry in rejects if entry["reason"] == "missing_field")
    assert (os.fsencode(found["file"]), found["line"]) == (named, 10)


def test_the_sample_looks_beyond_units_of_duplicates(corpus, tmp_path):
    texts = long_documents("repeated", 600)
    (tmp_path / "1.jsonl").write_text(lines(texts[:400]))
    (tmp_path / "2.jsonl").write_text(lines(texts))
    recipe = {
        "out": str(tmp_path / "out"),
        "unit_size": "8kb",
        "sources": {n: {"paths": [str(tmp_path / f"{n}.jsonl")]} for n in ("1", "2")},
        "tokenizer": {"vocab_size": 384, "sample_mb": 0.001},
        "execution": {"workers": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    pipeline.prepare(load_preparation([tmp_path / "recipe.yaml"], []), tokenizer_only=True)
    described = json.loads((tmp_path / "out/tokenizer/preparation.json").read_text())
    assert min(described["sampled_bytes"].values()) > 300


def test_an_evaluation_set_that_breaks_off_stops_the_job(corpus, tmp_path):
    packed = gzip.compress(lines(long_documents("evaluation", 99), "question").encode())
    (tmp_path / "quiz.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"quiz.jsonl.gz: cannot be read to its end"):
        run(corpus, tmp_path / "out", f"decontaminate.against=[{tmp_path}/quiz.jsonl.gz]")


def test_a_place_that_cannot_be_written_is_refused_at_once(corpus, tmp_path):
    with pytest.raises(UserError, match=r"/proc/nowhere/out: cannot be written"):
        run(corpus, "/proc/nowhere/out", f"work_dir={tmp_path}/work")
    assert not (tmp_path / "work").exists()


def test_a_full_disk_is_said_and_the_job_goes_on_when_there_is_room(corpus, made, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(UserError, match="make room and run again"):
            run(corpus, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run(corpus, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(made)


def test_what_somebody_else_wrote_is_never_replaced(corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds no finished preparation"):
        run(corpus, out, refresh=True)
    work = tmp_path / "work"
    work.mkdir()
    (work / "thesis.txt").write_text("more work")
    with pytest.raises(UserError, match="holds no job"):
        run(corpus, tmp_path / "other", f"work_dir={work}", refresh=True)
    assert (out / "thesis.txt").read_text() == "years of work"
    assert (work / "thesis.txt").read_text() == "more work"


def test_from_object_store_to_object_store(corpus, made, tmp_path, monkeypatch):
    import boto3
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="texts")
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        for path in corpus.rglob("*"):
            if path.is_file():
                system.put_file(str(path), f"texts/in/{path.relative_to(corpus)}")
        recipe = (corpus / "recipe.yaml").read_text().replace(str(corpus), "s3://texts/in")
        (tmp_path / "recipe.yaml").write_text(recipe)
        run(tmp_path, "s3://texts/out", f"work_dir={tmp_path / 'work'}")
        system.invalidate_cache()
        system.get("texts/out/", str(tmp_path / "got"), recursive=True)
        got, wanted = tree(tmp_path / "got"), tree(made)
        assert got.keys() == wanted.keys()
        assert all(got[n] == wanted[n] for n in wanted if n.endswith((".zstd", "index.json")))
        assert not (tmp_path / "work").exists()
        assert "up to date" in run(tmp_path, "s3://texts/out", f"work_dir={tmp_path / 'work'}")
        with pytest.raises(UserError, match="s3://nobucket/out: cannot be written"):
            run(tmp_path, "s3://nobucket/out", f"work_dir={tmp_path / 'work'}")
        with pytest.raises(UserError, match="no such file"):
            run(tmp_path, tmp_path / "x", "sources.code.paths=[s3://texts/nowhere]")
    finally:
        server.stop()


def test_the_command_and_its_exit_codes(corpus, made, tmp_path, monkeypatch, capsys):
    command = ["restomod", "prepare", str(corpus / "recipe.yaml"), f"out={made}"]
    monkeypatch.setattr(sys, "argv", command)
    assert cli.main() == 0
    assert "up to date" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "qualty.min_words=3"])
    assert cli.main() == 2
    assert "did you mean `quality`?" in capsys.readouterr().err


def test_a_prepared_corpus_trains_with_what_is_printed_at_the_end(corpus, made, tmp_path, train):
    manifest = json.loads((made / "manifest.json").read_text())
    recipe = load_preparation([corpus / "recipe.yaml"], [f"out={made}"])
    printed = pipeline.summary(recipe, manifest)
    assert "code: 300 documents, " in printed
    recipe = {
        "run_name": "prepared",
        "runs_dir": str(tmp_path / "runs"),
        "cache_dir": str(tmp_path / "cache"),
        "model": {"layers": 1, "hidden_size": 8, "heads": 1, "intermediate_size": 8},
        "phases": [
            {
                "slots": 4096,
                "sequence_length": 64,
                "row_tokens": 512,
                "batch_rows": 4,
                "mixture": {"code": 1, "prose": 1},
            }
        ],
        "logging": {"wandb": {"mode": "disabled"}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "data.yaml").write_text(printed.partition("in a training recipe:\n")[2])
    code, text = train(tmp_path / "recipe.yaml", str(tmp_path / "data.yaml"), "evaluation.rows=1")
    assert code == 0, text
    assert os.path.isdir(tmp_path / "runs" / "prepared")
