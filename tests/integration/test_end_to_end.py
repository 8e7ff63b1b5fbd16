"""From a trained run to the numbers, the report and the exported folder."""

import itertools
import json
import re
import sys

import pytest
import torch
import yaml

from restomod import cli, load_model
from restomod.data.sources import open_sources
from restomod.model.flops import flops_per_token
from restomod.recipe import load_recipe
from tests.conftest import Tiny, Trainings, metrics
from tests.wandb_files import wandb_files


@pytest.fixture(scope="module")
def run(tiny: Tiny, train: Trainings, tmp_path_factory: pytest.TempPathFactory):
    recipe = tiny.write(tmp_path_factory.mktemp("recipe") / "recipe.yaml")
    code, text = train(
        recipe, "run_name=whole", "logging.wandb.mode=offline", "init.log_unigram_bias=true"
    )
    assert code == 0, text
    folder = tiny.folder / "runs" / "whole"
    losses = [
        line["domains"]["all"]["loss"]
        for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if line["event"] == "eval"
    ]
    told = [float(loss) for loss in re.findall(r"^step \d+: held-out loss ([\d.]+)", text, re.M)]
    assert told == pytest.approx(losses, abs=1e-3)
    assert f"complete: {folder}/report.html shows it" in text
    return folder


def restomod(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["restomod", *map(str, arguments)])
    code = cli.main()
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_export_loads_in_transformers_with_the_same_logits(run, monkeypatch, capsys):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    code, out, err = restomod(monkeypatch, capsys, "export", run)
    assert code == 0, err
    assert "AutoModelForMaskedLM.from_pretrained" in out
    theirs = AutoModelForMaskedLM.from_pretrained(
        run / "exported", attn_implementation="sdpa"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "exported")
    assert tokenizer.mask_token == "[MASK]"
    ours = load_model(run)
    exported = load_model(run / "exported")
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, exported.state_dict()[name]), name
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 2, 17, 200, 1024]
    ids = torch.randint(5, tokenizer.vocab_size, (sum(lengths),), generator=generator)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)])
    with torch.no_grad():
        packed = ours.logits(ids, bounds)
        for begin, end in itertools.pairwise(bounds):
            alone = theirs(input_ids=ids[None, begin:end]).logits[0]
            torch.testing.assert_close(packed[begin:end], alone, atol=1e-4, rtol=0)


def test_a_larger_model_starts_from_a_tiled_one(run, tiny, train, tmp_path, monkeypatch, capsys):
    large, recipe = tmp_path / "large", tiny.write(tmp_path / "large.yaml", init__weights="large")
    sizes = ["--layers", 4, "--hidden-size", 48, "--intermediate-size", 64]
    code, out, err = restomod(monkeypatch, capsys, "tile", run, "--out", large, *sizes)
    assert code == 0, err
    assert "4 layers of 48, 3 heads" in out
    code, out, err = restomod(monkeypatch, capsys, "import", large)
    assert code == 0, err
    part = yaml.safe_load(out)
    assert part["init"] == {"weights": str(large)}
    assert part["model"]["heads"] == 3

    words = [f"runs_dir={tmp_path}", "phases.pretrain.slots=16384", f"init.weights={large}"]
    code, text = train(recipe, *words)
    assert code == 2
    assert "hidden_size: 48 there, 32 here" in text
    words += [f"model.{key}={value}" for key, value in part["model"].items()]
    code, text = train(recipe, *words)
    assert code == 0, text
    tiled, trained = load_model(large), load_model(tmp_path / "tiny")
    moved = tiled.encoder.embedding.weight - trained.encoder.embedding.weight
    assert 0 < moved.norm() < 0.5 * tiled.encoder.embedding.weight.norm()


def test_eval_prints_and_stores_numbers_beside_the_unigram(run, monkeypatch, capsys):
    code, out, err = restomod(monkeypatch, capsys, "eval", run)
    assert code == 0, err
    stored = json.loads((run / "evaluation.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["event"] == "eval"][-1]["domains"]
    for domain in ("prose", "all"):
        assert stored["domains"][domain]["loss"] == pytest.approx(last[domain]["loss"], abs=1e-6)
        assert stored["domains"][domain]["unigram_loss"] > 0
        assert f"{stored['domains'][domain]['loss']:.3f}" in out
    assert "report.html" in out
    newest = max((run / "checkpoints").iterdir())
    before = (run / "evaluation.json").read_bytes()
    code, alone, err = restomod(monkeypatch, capsys, "eval", newest)
    assert code == 0, err
    assert alone == out[: len(alone)]
    assert "report.html" not in alone
    assert (run / "evaluation.json").read_bytes() == before


def test_bias_starts_at_the_unigram(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["event"] == "train")
    assert first["loss"] < 5.5  # ln(512) is 6.24


def test_wandb_run_is_offline_and_holds_the_metrics(run):
    (file,) = wandb_files(run)
    keys = {key for row in file.rows for key in row}
    assert {"train/loss", "train/tokens_per_s", "mixture/code", "eval/prose/loss"} <= keys
    assert file.exit_code == 0


def test_metrics_carry_every_documented_field(run):
    from pathlib import Path

    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        for key in line:
            assert f"`{key}`" in documented, key


def test_metrics_are_consistent(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["event"] == "train"]
    for n, line in enumerate(train, 1):
        assert line["step"] == n
        assert line["tokens"] == n * 2048
        assert 0.5 < line["packing_efficiency"] <= 1
        assert 0 <= line["data_wait_fraction"] < 1
        assert line["tokens_per_s"] > 0
        assert 0 < line["mfu"] < 1
        assert sum(line["mixture"].values()) == pytest.approx(1)
    assert train[-1]["real_tokens"] == pytest.approx(
        sum(line["packing_efficiency"] * 2048 for line in train), abs=1
    )
    assert 0.2 < train[-1]["masked_tokens"] / train[-1]["real_tokens"] < 0.3
    sources = open_sources(load_recipe([run / "config.yaml"]))
    trained = sum(
        times * sources.streams[name].attributes.tokens
        for name, times in train[-1]["epochs"].items()
    )
    chunks = sum(line["documents"] for line in train)
    assert trained == pytest.approx(train[-1]["real_tokens"] - 2 * chunks)
    times = [line["time_s"] for line in lines]
    assert times == sorted(times)


def test_mfu_is_the_formula_over_one_peak(run):
    config, peaks = load_model(run).config, []
    for line in metrics(run):
        mean = line["packing_efficiency"] * 2048 / line["documents"]
        per_token = flops_per_token(config, config.vocab_size, [mean], 0.27)
        real_tokens_per_s = line["tokens_per_s"] * line["packing_efficiency"]
        peaks.append(real_tokens_per_s * per_token / line["mfu"])
    assert max(peaks) < 1.2 * min(peaks)  # lengths and masked shares vary a little
    assert 1e9 < peaks[0] < 1e13


@pytest.mark.parametrize("command", ["eval", "export", "report"])
def test_folder_that_is_no_run_is_refused(command, tmp_path, monkeypatch, capsys):
    code, out, err = restomod(monkeypatch, capsys, command, tmp_path)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert str(tmp_path) in err
    assert list(tmp_path.iterdir()) == []
