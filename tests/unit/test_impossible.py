"""Values and combinations that cannot be trained are refused under their key, with the reason."""

import pytest

from restomod.errors import UserError
from restomod.recipe import load_recipe
from tests.unit.test_recipe import GOOD

PHASE = "phases.pretrain"


@pytest.mark.parametrize(
    ("overrides", "key", "reason"),
    [
        ("faults.grace=soon", "faults.grace", "`soon` is not a time such as 45s"),
        ("faults.hang_timeout=0s", "faults.hang_timeout", "0s: must be at least 1 s"),
        ("faults.nonfinite_steps=0", "faults.nonfinite_steps", "0: must be at least 1"),
        ("faults.spikes.window_steps=3", "faults.spikes.window_steps", "3: must be at least 4"),
        ("faults.spikes.threshold=0", "faults.spikes.threshold", "must be positive"),
        ("profile.steps=[4]", "profile.steps", "[4]: write [FROM, TO]"),
        ("profile.steps=[4,4]", "profile.steps", "[4, 4]: write [FROM, TO]"),
        ("profile.ranks=[-1]", "profile.ranks", "ranks are numbered from 0"),
        ("checkpoint.keep=0", "checkpoint.keep", "must be positive"),
        ("checkpoint.keep_every=often", "checkpoint.keep_every", "`often` is not a number of"),
        ("checkpoint.keep_best=-1", "checkpoint.keep_best", "must not be negative"),
        ("checkpoint.average_best=1", "checkpoint.average_best", "needs evaluation.streams"),
        (f"{PHASE}.mask.rate=1", "mask.rate", "1.0: must lie in (0, 1)"),
        (f"{PHASE}.mask.later=[{{at: 1M, rate: 0}}]", "mask.later.0.rate", "0.0: must lie in"),
        (f"{PHASE}.mask.later=[{{at: x, rate: 0.2}}]", "mask.later.0.at", "`x` is not a number"),
        (f"{PHASE}.mask.later=[{{at: 101M, rate: 0.2}}]", "mask.later.0.at", "phase ends before"),
        (
            f"{PHASE}.mask.later=[{{at: 2M, rate: 0.2}}, {{at: 1M, rate: 0.1}}]",
            "mask.later.1.at",
            "1M: must lie behind the step before it",
        ),
        (f"{PHASE}.mask.mask_share=0.95", "mask.mask_share", "add up to <= 1"),
        (f"{PHASE}.slots=many", "slots", "`many` is not a number of slots"),
        (f"{PHASE}.slots=0", "slots", "is missing: the phase's length"),
        (f"{PHASE}.name=7", "name", "'7': use letters, digits"),
        (f"{PHASE}.batch_rows=0", "batch_rows", "must be positive"),
        (f"{PHASE}.sequence_length=2", "sequence_length", "at least 3"),
        (f"{PHASE}.row_tokens=512", "row_tokens", "512 is less than sequence_length 1024"),
        (
            f"{PHASE}.sequence_length=8;{PHASE}.row_tokens=8;data.tokens_per_document_min=16",
            "row_tokens",
            "is less than data.tokens_per_document_min",
        ),
        (f"{PHASE}.rope_base_local=0", "rope_base_local", "must be positive"),
        (f"{PHASE}.lr=0", "lr", "0.0: must be positive"),
        (f"{PHASE}.weight_decay=1", "weight_decay", "1.0: must lie in [0, 1)"),
        (f"{PHASE}.z_loss=-1", "z_loss", "must not be negative"),
        (f"{PHASE}.mixture={{}}", "mixture", "is missing: what is drawn of each stream"),
        (f"{PHASE}.mixture.wbe=1", "mixture.wbe", "did you mean `web`?"),
        (f"{PHASE}.mixture.web=-1", "mixture.web", "-1.0: must not be negative"),
        (f"{PHASE}.mixture_by=choose", "mixture", "documents are chosen in whole numbers"),
        (
            f"{PHASE}.mixture.web=0;{PHASE}.mixture.code=0",
            "mixture",
            "at least one share must be positive",
        ),
        (f"{PHASE}.batch_warmup.first_rows=2", "batch_warmup.slots", "is missing: the slots"),
        (
            f"{PHASE}.batch_warmup={{slots: 1M, first_rows: 99999, increment_rows: 1}}",
            "batch_warmup.first_rows",
            "99999: must lie in 1 .. batch_rows - 1",
        ),
        (
            f"{PHASE}.batch_rows=8;"
            f"{PHASE}.batch_warmup={{slots: 1M, first_rows: 2, increment_rows: 0}}",
            "batch_warmup.increment_rows",
            "must be positive",
        ),
        (
            f"{PHASE}.batch_rows=8;"
            f"{PHASE}.batch_warmup={{slots: 100M, first_rows: 2, increment_rows: 2}}",
            "batch_warmup.slots",
            "100M: the phase ends before it",
        ),
        *(
            (
                f"{PHASE}.slots=8M;{PHASE}.batch_rows={rows};"
                f"{PHASE}.batch_warmup={{slots: 7.9M, first_rows: 100, increment_rows: 100}}",
                "batch_warmup",
                f"{sizes} each, take {slots} slots, more than the phase has",
            )
            for rows, sizes, slots in (
                (300, "its 2 sizes, 2 steps", "9,830,400"),
                (400, "its 3 sizes, 1 step", "9,830,400"),
            )
        ),
        (
            f"{PHASE}.schedule.warmup=60M;{PHASE}.schedule.decay=50M",
            "schedule",
            "warmup 60M and decay 50M exceed 100M",
        ),
        ("data.tokens_per_document_min=0", "data.tokens_per_document_min", "must be positive"),
        ("model.layers=1001", "model.layers", "must be at most 1,000"),
        ("model.hidden_size=98304", "model.hidden_size", "must be at most 65,536"),
        ("model.local_window=2097152", "model.local_window", "must be at most 1,048,576"),
        (f"tokenizer=a/{256 * 'b'}/c", "tokenizer", "no name of a file"),
        (f"data.streams.web.path=s3://{256 * 'b'}", "data.streams.web.path", "no name of a file"),
        (f"runs_dir={2000 * 'b/'}", "runs_dir", "no path 4,000"),
        ("faults.hang_timeout=40000d", "faults.hang_timeout", "at most 1,000,000,000 s"),
        ("data.download_timeout_s=1e7", "data.download_timeout_s", "at most a million"),
        ("optimizer.lr=1e-40", "optimizer.lr", "zero, or one from 1.2e-38 on, is expected"),
        (f"{PHASE}.batch_rows=20000000", "batch_rows", "must be at most 16,777,216"),
        ("data.lanes=1048577", "data.lanes", "at most 1,048,576"),
        ("optimizer.lr=8", "optimizer.lr", "8.0: must be positive, and at most 1"),
        ("optimizer.eps=1", "optimizer.eps", "must lie in (0, 1)"),
        ("model.norm_eps=1", "model.norm_eps", "must lie in (0, 1)"),
        (f"run_name={129 * 'a'}", "run_name", "at most 128"),
        ('runs_dir="a\\0b"', "runs_dir", "text without NUL characters is expected"),
        (f"{PHASE}.lr=1.5", "lr", "1.5: must be positive, and at most 1"),
        (f"{PHASE}.z_loss=2", "z_loss", "nor above 1"),
        (f"{PHASE}.rope_base_global=0.5", "rope_base_global", "at least 1"),
        (
            f"{PHASE}.row_tokens=1048576;{PHASE}.micro_batch_rows=4096",
            "micro_batch_rows",
            "a micro-batch of 4096 rows of 1048576 slots: at most 2,147,483,647",
        ),
        ("data.buffer_rows=1000000", "row_tokens", "a buffer (data.buffer_rows) of 1000000 rows"),
        (f"{PHASE}.schedule.final_factor=2", "schedule.final_factor", "must lie in [0, 1]"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, overrides, key, reason):
    (tmp_path / "good.yaml").write_text(GOOD)
    with pytest.raises(UserError) as error:
        load_recipe([tmp_path / "good.yaml"], overrides.split(";"))
    lines = [line for line in str(error.value).splitlines() if f"{key}: " in line]
    assert any(reason in line for line in lines), str(error.value)
