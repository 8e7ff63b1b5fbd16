"""What a model card says of a run, a checkpoint, an average and a foreign folder."""

import json
import os
import re
import stat
import sys
import time
from xml.etree import ElementTree

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from restomod import cli, save_transformers
from restomod.data.tokenizer import load_tokenizer
from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.recipe import load_recipe, save_recipe
from restomod.tools.average import average_run
from restomod.tools.export.export import export_run
from restomod.train.checkpoints.manifest import FORMAT, checkpoint_folder
from restomod.train.checkpoints.saving import Snapshot, write_checkpoint

STARTED = {
    "event": "start",
    "time_s": 0.1,
    "step": 0,
    "device": "NVIDIA H100",
    "host": "secret-host",
    "world_size": 8,
    "git": {"commit": "abc123", "dirty": False},
    "versions": {"torch": "2.13.0"},
    "stream_domains": {"code": "code", "prose": "prose"},
}


def scores(step):
    return {"loss": 6.0 - step / 10, "accuracy": step / 100, "masked_tokens": 100.0}


def line(step):
    return {
        "event": "train",
        "time_s": 10.0 * step,
        "step": step,
        "phase": "pretrain",
        "tokens": 2048 * step,
        "real_tokens": 2000 * step,
        "masked_tokens": 600 * step,
        "loss": 6.2 - step / 10,
        "tokens_per_s": 1000.0,
        "mixture": {"code": 0.75, "prose": 0.25, "science": 0.0},
        "epochs": {"code": step / 10, "prose": step / 20, "science": 0.0},
    }


@pytest.fixture
def run(tiny, tmp_path):
    """A run of ten steps, checkpoints at 5 and 10, whose code comes from a preparation."""
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    source = {"name": "code", "licence": "BSD-3-Clause", "url": "https://example.org/code"}
    source |= {"description": "Code | of packages"}
    (prepared / "manifest.json").write_text(json.dumps({"sources": [source]}))
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    written = tiny.write(
        tmp_path / "recipe.yaml",
        runs_dir=str(tmp_path / "runs"),
        data__streams__code__path=f"{prepared}/code/train",
        phases__mask={"rate": 0.3, "later": [{"at": "1K", "rate": 0.15}]},
        card={"licence": "apache-2.0", "language": ["en", "code"], "datasets": ["owner/texts"]},
    )
    save_recipe(load_recipe([written]), folder / "config.yaml")
    lines = [STARTED]
    for step in range(1, 11):
        lines.append(line(step))
        if step % 5 == 0:
            domains = {"prose": scores(step), "all": scores(step)}
            lines.append({"event": "eval", "time_s": 1.0, "step": step, "domains": domains})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    tokenizer = load_tokenizer(tiny.recipe["tokenizer"])
    (folder / "tokenizer").symlink_to(tiny.recipe["tokenizer"])
    ids = {"cls_id": tokenizer.cls_id, "sep_id": tokenizer.sep_id, "pad_id": tokenizer.pad_id}
    shape = {**tiny.recipe["model"], "vocab_size": tokenizer.vocab_size, **ids}
    shape["max_sequence_length"] = 64
    torch.manual_seed(0)
    for step in (5, 10):
        about = {"format": FORMAT, "step": step, "slots": 2048 * step, "phase": "pretrain"}
        about["evaluation"] = {"step": step, "domains": {"all": scores(step)}}
        parts = {"model": MaskedLM(EncoderConfig(**shape)).state_dict(), "optimizer": {}}
        loader = {"rows": 0, "lanes": {}}
        snapshot = Snapshot(step, parts, loader, shape, about, time.perf_counter())
        write_checkpoint(snapshot, checkpoint_folder(folder, step), None)
    return folder


def card_of(folder):
    return (folder / "README.md").read_text()


def test_card_tells_of_the_run(run):
    export_run(run)
    text = card_of(run / "exported")
    assert "These are the weights of the checkpoint at step 10." in text
    assert "| steps | 10 |" in text
    assert "| tokens | 20,000 |" in text
    assert re.search(r"\| pretrain \| mlm \|.*\| 30%, 15% at 1K \|\n", text)
    assert "| hardware | 8 x NVIDIA H100 |" in text
    code = "| code | code | 15,000 | 75.0% | 1.00 | BSD-3-Clause | https://example.org/code | "
    assert code + "Code \\| of packages |" in text
    assert "| prose | prose | 5,000 | 25.0% | 0.50 | not stated |  |  |" in text
    assert "| all | 5.000 | 10.0% | 100 |" in text
    assert "Licence of the weights: apache-2.0." in text
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S).group(1))
    assert recipe["phases"][0]["mixture"] == {"code": 0.5, "prose": 0.3, "science": 0.2}
    assert recipe["model"]["layers"] == 3
    assert str(run.parent) not in text
    assert "secret-host" not in text


def test_metadata_is_what_the_hub_reads(run):
    export_run(run)
    data = ModelCard.load(run / "exported" / "README.md").data
    assert (data.license, data.language, data.datasets) == (
        "apache-2.0",
        ["en", "code"],
        ["owner/texts"],
    )
    assert (data.library_name, data.pipeline_tag) == ("transformers", "fill-mask")
    results = {(r.dataset_type, r.metric_type): r.metric_value for r in data.eval_results}
    for domain in ("prose", "all"):
        assert results.pop((f"held-out-{domain}", "loss")) == 5.0
        assert results.pop((f"held-out-{domain}", "accuracy")) == 0.1
    assert not results


def test_curve_is_a_picture_of_its_own(run):
    export_run(run)
    assert "![Loss over the tokens trained on](loss.svg)" in card_of(run / "exported")
    tree = ElementTree.parse(run / "exported" / "loss.svg").getroot()
    lines = tree.findall("{http://www.w3.org/2000/svg}polyline")
    counts = [len(curve.get("points").split()) for curve in lines]
    assert counts == [10, 2]
    heights = [float(point.split(",")[1]) for point in lines[0].get("points").split()]
    assert heights == sorted(heights)  # the loss falls


def test_an_earlier_checkpoint_tells_of_its_own_step(run):
    export_run(run, step=5)
    text = card_of(run / "exported-step-00000005")
    assert "the checkpoint at step 5" in text
    assert "| tokens | 10,000 |" in text
    assert "| all | 5.500 | 5.0% | 100 |" in text


def test_an_average_names_its_steps_and_has_no_evaluation_of_one_of_them(run):
    average_run(run, load_recipe([run / "config.yaml"]), run / "averaged", last=2)
    export_run(run / "averaged")
    text = card_of(run / "exported-averaged")
    assert "the mean of the checkpoints at steps 5, 10" in text
    assert "| tokens | 20,000 |" in text
    assert "## Evaluation" not in text


def test_unigram_is_told_where_evaluation_json_is_of_the_same_weights(run):
    found = {"all": {**scores(10), "unigram_loss": 7.125, "unigram_accuracy": 0.031}}
    (run / "evaluation.json").write_text(json.dumps({"domains": found}))
    export_run(run)
    assert "| all | 5.000 | 7.125 | 10.0% | 3.1% | 100 |" in card_of(run / "exported")
    export_run(run, step=5)
    assert "7.125" not in card_of(run / "exported-step-00000005")


def test_views_probes_and_suites_are_in_the_evaluation(run):
    later = {"domains": {"all": scores(10)}, "views": {"mask_0.3": {"all": scores(3)}}}
    later["probes"] = {"topics": {"accuracy": 0.75, "majority": 0.5, "examples": 400}}
    (run / "evaluation.json").write_text(json.dumps(later))
    newest, older = (checkpoint_folder(run, step) for step in (10, 5))

    def system(score):
        return {"scores": {"mrr": score, "recall": 0.0}, "standard_error": 0.01}

    results = {
        "suite": "offline",
        "models": [
            {"name": "old", "path": str(older), "slots": 1},
            {"name": "new", "path": str(newest), "slots": 2},
        ],
        "tasks": {
            "docstrings": {
                "kind": "retrieval",
                "metric": "mrr",
                "systems": {"old": system(0.2), "new": system(0.25), "TF-IDF": system(0.5)},
            },
            "topics": {"kind": "classification", "skipped": "no data"},
        },
    }
    (run / "evaluations" / "offline").mkdir(parents=True)
    (run / "evaluations" / "offline" / "results.json").write_text(json.dumps(results))
    (run / "evaluations" / "broken").mkdir()
    (run / "evaluations" / "broken" / "results.json").write_text('{"models": 1}')
    export_run(run)
    text = card_of(run / "exported")
    assert "| all, mask_0.3 | 5.700 | 3.0% | 100 |" in text
    assert "| topics | 75.0% | 50.0% | 400 |" in text
    assert "| offline: docstrings | mrr | 0.250 ± 0.010 | TF-IDF 0.500 |" in text
    found = ModelCard.load(run / "exported" / "README.md").data.eval_results
    values = {result.dataset_type: result.metric_value for result in found}
    assert (values["offline-docstrings"], "held-out-all-mask-0-3" in values) == (0.25, True)
    export_run(run, step=5)
    assert "| mrr | 0.200 ± 0.010 |" in card_of(run / "exported-step-00000005")


def test_suites_of_a_run_count_until_it_trains_on(run):
    model = {"name": "tiny", "path": str(run), "slots": None}
    system = {"scores": {"accuracy": 0.5}, "standard_error": None}
    task = {"kind": "classification", "metric": "accuracy", "systems": {"tiny": system}}
    path = run / "evaluations" / "glue" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"suite": "glue", "models": [model], "tasks": {"sst2": task}}))
    export_run(run)
    assert "| glue: sst2 | accuracy | 0.500 |" in card_of(run / "exported")
    os.utime(path, (0, 0))
    export_run(run)
    assert "glue" not in card_of(run / "exported")


def test_a_foreign_folder_gets_a_card_of_what_is_known(run, tmp_path, tiny):
    model = MaskedLM(EncoderConfig(layers=1, hidden_size=32, heads=2, vocab_size=512, pad_id=3))
    model.config.cls_id, model.config.sep_id = 1, 2
    save_transformers(model, tmp_path / "foreign", tiny.recipe["tokenizer"])
    export_run(tmp_path / "foreign", tmp_path / "out", overrides=["card.licence=mit"])
    text = card_of(tmp_path / "out")
    assert text.count("## ") == 3
    assert "| layers | 1 |" in text
    assert "Licence of the weights: mit." in text
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "mit"
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_card_that_was_edited_stays(run):
    assert "model card: " in export_run(run)
    export_run(run, overrides=["card.description=First."])
    path = run / "exported" / "README.md"
    assert "First." in path.read_text()  # ours was replaced
    path.write_text(path.read_text().replace("First.", "Written by hand."))
    text = export_run(run, overrides=["card.description=Second."])
    assert "was edited and stays; the new one is" in text
    assert "Written by hand." in path.read_text()
    assert "Second." in (run / "exported" / "README.new.md").read_text()


def test_command_takes_the_cards_keys_and_refuses_others(run, monkeypatch, capsys):
    def export(*words):
        monkeypatch.setattr(sys, "argv", ["restomod", "export", str(run), *words])
        return cli.main(), capsys.readouterr().err

    assert export("--step", "5", "card.licence=cc-by-4.0") == (0, "")
    assert "cc-by-4.0" in card_of(run / "exported-step-00000005")
    code, err = export("model.layers=4")
    assert code == 2
    assert "export takes card.KEY=VALUE only" in err
    code, err = export("card.licence=Apache 2")
    assert code == 2
    assert "card.licence: 'Apache 2': is not spelled as on the hub: apache-2.0" in err
    code, err = export("card.language=[english]")
    assert code == 2
    assert "en, de, code" in err


def test_a_recipe_of_another_version_does_not_keep_the_model(run, caplog):
    (run / "config.yaml").write_text("renamed: 1\n")
    export_run(run)
    assert "tells nothing of the run" in caplog.text
    assert "## Architecture" in card_of(run / "exported")


def test_card_is_free_to_change_on_resume_and_checked_in_recipes(tiny, tmp_path):
    from restomod.train.guards import guarded

    path = tiny.write(tmp_path / "recipe.yaml")
    assert not [key for key in guarded(load_recipe([path])) if key.startswith("card")]
    with pytest.raises(UserError, match=r"card\.datasets"):
        load_recipe([path], ["card.datasets=[a/b/c]"])


def test_exported_files_hold_no_pickle_and_are_as_readable_as_others(run):
    export_run(run)
    names = {path.name for path in (run / "exported").iterdir()}
    assert names == {
        *("README.md", "loss.svg", "config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    }
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (run / "exported").glob("*.*s*")}
    assert len(modes) == 1
