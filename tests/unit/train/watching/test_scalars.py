"""W&B and TensorBoard show the numbers of a line under the same names."""

from restomod.train.watching.scalars import scalars


def test_names_say_where_a_number_is_from():
    train = {
        "event": "train", "time_s": 3.0, "step": 2, "tokens": 4096, "phase": "pretrain",
        "loss": 2.5, "data_digest": "00ff", "mixture": {"code": 0.75}, "skipped_steps": 0,
        "skipped_documents": {"empty": 1}, "grad_norm": None,
    }  # fmt: skip
    assert scalars(train) == {
        "train/loss": 2.5,
        "train/skipped_steps": 0,
        "mixture/code": 0.75,
        "skipped_documents/empty": 1,
    }
    heldout = {"event": "eval", "step": 2, "domains": {"all": {"loss": 3.0, "accuracy": None}}}
    assert scalars(heldout) == {"eval/all/loss": 3.0}
    spike = {"event": "skipped_step", "step": 2, "reason": "spike", "deviations": 12.5}
    assert scalars(spike) == {"events/skipped_step": 1.0, "skipped_step/deviations": 12.5}
    assert scalars({"event": "resume", "step": 2, "world_size": 8}) == {"events/resume": 1.0}
    assert scalars({"event": "samples", "step": 2, "samples": []}) == {}
