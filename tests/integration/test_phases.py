"""A run of three phases: one command trains them, resumes in any, and starts one alone."""

import json

import pytest
import yaml

from restomod.tools.runs import load_model
from tests.conftest import Tiny, Trainings, metrics
from tests.integration.test_resume import exactly

ENDS = {"pretrain": 8, "extension": 13, "decay": 25}


@pytest.fixture(scope="module")
def recipe(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory):
    """pretrain with a growing batch and mask rates that fall; longer documents at another RoPE
    base; a decay with another mixture, learning rate and fresh moments."""
    path = tiny.write(tmp_path_factory.mktemp("recipe") / "recipe.yaml")
    plain = yaml.safe_load(path.read_text())
    common = plain["phases"][0]
    pretrain = {
        **common,
        "slots": 512 * (2 * 2 + 6 * 4),  # 2 rows for 2 steps, then 4 rows for 6
        "batch_warmup": {"slots": 512 * 4, "first_rows": 2, "increment_rows": 2},
        "mask": {"rate": 0.3, "later": [{"at": 4096, "rate": 0.15}], "between": "steps"},
        "schedule": {"warmup": 2048},
    }
    extension = {
        **common,
        "name": "extension",
        "slots": 1024 * 10,
        "sequence_length": 256,
        "row_tokens": 1024,
        "batch_rows": 2,
        "rope_base_global": 160_000.0,
        "lr": 5e-4,
        "schedule": {},
    }
    decay = {
        **extension,
        "name": "decay",
        "slots": 1024 * 24,
        "mixture": {"code": 0.1, "science": 0.9, "prose": 0.0},
        "optimizer_state": "reset",
        "weight_decay": 1e-4,
        "schedule": {"decay": 1024 * 24, "decay_shape": "cosine"},
    }
    plain["phases"] = [pretrain, extension, decay]
    plain["checkpoint"] = {"every_steps": 3, "keep": 20}
    path.write_text(yaml.safe_dump(plain))
    return path


@pytest.fixture(scope="module")
def unbroken(tiny: Tiny, train: Trainings, recipe):
    code, text = train(recipe, "run_name=phases")
    assert code == 0, text
    return tiny.folder / "runs" / "phases"


def test_one_command_trains_every_phase(unbroken):
    lines = metrics(unbroken)
    assert [line["step"] for line in lines] == list(range(1, 26))
    ends = {line["phase"]: line["step"] for line in lines}
    assert ends == ENDS
    assert [line["tokens"] for line in lines[:3]] == [1024, 2048, 4096]
    assert lines[7]["tokens"] == 512 * 28
    assert lines[-1]["tokens"] == 512 * 28 + 1024 * 34
    assert lines[7]["lr"] == 1e-3
    assert lines[8]["lr"] == lines[12]["lr"] == 5e-4
    assert lines[24]["lr"] < lines[13]["lr"] < 5e-4
    assert lines[24]["mixture"]["science"] > 0.5 > lines[0]["mixture"]["science"]
    masked = [line["masked_tokens"] for line in lines]
    slots = [line["real_tokens"] for line in lines]
    rate = [(masked[n] - masked[n - 1]) / (slots[n] - slots[n - 1]) for n in range(1, len(masked))]
    assert min(rate[0:2]) > 0.22  # of all slots; special tokens are never masked
    assert max(rate[2:7]) < 0.2
    assert {line["step"] for line in metrics(unbroken, "eval")} == {8, 10, 13, 20, 25}
    manifests = [json.loads(p.read_bytes()) for p in unbroken.glob("checkpoints/*/manifest.json")]
    assert {m["step"] for m in manifests} == {3, 6, 8, 9, 12, 13, 15, 18, 21, 24, 25}


def test_rope_base_and_length_of_the_last_phase_are_the_models(unbroken):
    config = load_model(unbroken / "checkpoints" / "step-00000008").config
    assert (config.rope_base_global, config.max_sequence_length) == (10_000.0, 64)
    config = load_model(unbroken).config
    assert (config.rope_base_global, config.max_sequence_length) == (160_000.0, 256)


def test_rope_base_changes_what_the_extension_trains_on_nothing_else(tiny, train, recipe, unbroken):
    """The base takes effect with the extension's first step, on the same weights and data."""
    code, text = train(
        recipe,
        "run_name=same-base",
        "phases.extension.rope_base_global=10_000.0",
        "phases.decay.rope_base_global=10_000.0",
        "phases.extension.slots=2048",
        "phases.decay.slots=2048",
        "phases.decay.schedule.decay=2048",
    )
    assert code == 0, text
    ours, other = metrics(unbroken), metrics(tiny.folder / "runs" / "same-base")
    assert exactly_lines(ours[:8]) == exactly_lines(other[:8])
    assert ours[8]["data_digest"] == other[8]["data_digest"]
    assert ours[8]["loss"] != other[8]["loss"]


def exactly_lines(lines):
    return [{key: line[key] for key in ("step", "loss", "data_digest", "lr")} for line in lines]


def test_kills_in_every_phase_change_no_number(tiny, train, recipe, unbroken):
    folder = tiny.folder / "runs" / "killed-phases"
    for stop in (4, 8, 11, 17):
        code, _ = train(
            recipe,
            "run_name=killed-phases",
            kill_when=lambda stop=stop: len(metrics(folder)) >= stop,
        )
        assert code == -9
    code, text = train(recipe, "run_name=killed-phases")
    assert code == 0, text
    assert exactly(folder) == exactly(unbroken)
    ends = [metrics(f, "eval")[-1]["domains"] for f in (folder, unbroken)]
    assert ends[0] == ends[1]


def test_phase_alone_from_the_same_checkpoint_equals_the_whole_run(tiny, train, recipe, unbroken):
    checkpoint = unbroken / "checkpoints" / "step-00000013"
    alone = tiny.folder / "runs" / "decay-alone"
    words = ("--phase", "decay", "--from", checkpoint, "run_name=decay-alone")
    code, _ = train(recipe, *words, kill_when=lambda: len(metrics(alone)) >= 2)
    assert code == -9
    code, text = train(alone / "config.yaml")  # which says where it began
    assert code == 0, text
    assert exactly(alone) == {s: line for s, line in exactly(unbroken).items() if s > 13}

    second = tiny.folder / "runs" / "second-decay"
    code, text = train(
        recipe, "--phase", "decay", "--from", checkpoint, "run_name=second-decay",
        "phases.decay.slots=4096", "phases.decay.schedule.decay=4096", "phases.decay.lr=1e-4",
    )  # fmt: skip
    assert code == 0, text
    lines = metrics(second)
    assert [line["step"] for line in lines] == [14, 15]
    assert lines[0]["data_digest"] == metrics(unbroken)[13]["data_digest"]


def test_kept_moments_are_kept_and_reset_ones_are_not(tiny, train, recipe, unbroken):
    code, text = train(
        recipe, "--phase", "decay", "--from", unbroken / "checkpoints" / "step-00000013",
        "run_name=kept", "phases.decay.optimizer_state=keep",
    )  # fmt: skip
    assert code == 0, text
    kept, reset = metrics(tiny.folder / "runs" / "kept"), metrics(unbroken)[13:]
    assert kept[0]["loss"] == reset[0]["loss"]
    assert kept[1]["loss"] != reset[1]["loss"]


def test_fork_goes_on_with_another_recipe_and_records_it(tiny, train, recipe, unbroken):
    code, text = train(
        recipe, "--fork", f"{unbroken}@12", "run_name=fork", "phases.extension.lr=2e-4"
    )
    assert code == 0, text
    folder = tiny.folder / "runs" / "fork"
    start = metrics(folder, "start")[0]
    assert start["changed"] == ["phases.extension.lr"]
    assert start["step"] == 12
    ours, other = metrics(unbroken)[12:], metrics(folder)
    assert [line["data_digest"] for line in ours] == [line["data_digest"] for line in other]
    assert ours[0]["loss"] == other[0]["loss"]
    assert other[0]["lr"] == 2e-4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fork", "RUN@12", "model.layers=2"], "model.layers: was 3, is 2"),
        (["--fork", "RUN@12", "seed=1"], "seed: was 17, is 1"),
        (["--fork", "RUN@7"], "no such checkpoint; there is step-00000003"),
        (["--fork", "RUN"], "write RUN@STEP"),
        (["--fork", "RUN@12", "phases.pretrain.slots=16K"],
         "had been trained on in 12 steps"),
        (["--fork", "RUN@12", "phases.extension.row_tokens=512"],
         "36 rows and 22,528 slots had been trained on in 12 steps, with the recipe's phases it"),
        (["--phase", "decay"], "needs a checkpoint to begin from"),
        (["--from", "RUN/checkpoints/step-00000012"], "needs a checkpoint to begin from"),
        (["--phase", "dacay", "--from", "x"], "no phase is named 'dacay'"),
        (["--fork", "RUN@12", "init.weights=x"], "would be overwritten"),
    ],
)  # fmt: skip
def test_impossible_starts_are_refused(train, recipe, unbroken, words, message):
    words = [word.replace("RUN", str(unbroken)) for word in words]
    code, text = train(recipe, "run_name=refused", *words)
    assert code == 2, text
    assert message in text
    assert not (unbroken.parent / "refused").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("phases.pretrain.slots=16K", "phases.pretrain.slots: it ended at step 8, now it would at"),
        ("phases.pretrain.lr=1e-4", "phases.pretrain.lr: was None, is 0.0001"),
        ("phases.extension.rope_base_global=10_000.0", "phases.extension.rope_base_global: was"),
        ("phases.extension.slots=2048", "it would end at step 9, the run has done 12"),
        ("phases.extension.name=other", "phases: the run's phase 2 was extension, is other"),
        (
            "phases.pretrain.batch_warmup.slots=8192",
            "phases.pretrain.batch_warmup.slots: was",
        ),
    ],
)
def test_what_has_begun_is_guarded_and_what_has_not_is_free(unbroken, recipe, change, message):
    from restomod.data.sources import open_sources
    from restomod.errors import UserError
    from restomod.recipe import load_recipe
    from restomod.train.guards import check_unchanged, fingerprint

    manifest = json.loads(
        (unbroken / "checkpoints" / "step-00000012" / "manifest.json").read_bytes()
    )
    free = load_recipe(
        [recipe], ["phases.decay.lr=1e-5", "phases.decay.slots=50K", "phases.extension.slots=50K"]
    )
    identity = fingerprint(open_sources(free))
    assert check_unchanged(manifest, free, identity) == []
    with pytest.raises(UserError, match=message):
        check_unchanged(manifest, load_recipe([recipe], [change]), identity)
