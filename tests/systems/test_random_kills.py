"""Six lanes, three phases, one to six ranks, a checkpoint a step, kills at any moment: no number
changes."""

import random
import time

import pytest
import yaml

from tests.conftest import Tiny, metrics
from tests.integration.test_resume import exactly

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory):
    """A growing batch and a falling mask rate; longer rows; a stream that is new and one that
    ends."""
    path = tiny.write(tmp_path_factory.mktemp("recipe") / "recipe.yaml")
    plain = yaml.safe_load(path.read_text())
    plain["data"] |= {"lanes": 6, "buffer_rows": 3}
    common = plain["phases"][0] | {"schedule": {}}
    one = common | {
        "name": "one",
        "slots": 256 * (6 * 2 + 12 * 4),
        "row_tokens": 256,
        "sequence_length": 32,
        "batch_rows": 12,
        "batch_warmup": {"slots": 256 * 12, "first_rows": 6, "increment_rows": 6},
        "mixture": {"code": 0.6, "prose": 0.4},
        "mask": {"rate": 0.3, "later": [{"at": 256 * 24, "rate": 0.15}], "between": "linear"},
    }
    two = common | {"name": "two", "slots": 1024 * 24, "row_tokens": 1024, "batch_rows": 6}
    two |= {"sequence_length": 256, "mixture": {"code": 0.5, "prose": 0.5}}
    three = common | {"name": "three", "slots": 384 * 30, "row_tokens": 384, "batch_rows": 6}
    three |= {"sequence_length": 48, "mixture": {"science": 0.7, "prose": 0.3, "code": 0.0}}
    plain["phases"] = [one, two, three]
    plain["checkpoint"] = {"every_steps": 1, "keep": 4, "average_best": 2}
    plain["evaluation"]["every_steps"] = 3
    path.write_text(yaml.safe_dump(plain))
    return path


def digests(folder):
    keys = ("step", "data_digest", "real_tokens", "masked_tokens", "epochs", "lr")
    return [[line[key] for key in keys] for line in metrics(folder)]


def test_kills_at_any_moment_change_no_number_on_any_number_of_ranks(tiny, train, recipe):
    runs, draw = tiny.folder / "runs", random.Random(0)
    for ranks, strategy in ((1, "ddp"), (2, "fsdp"), (3, "ddp"), (3, "fsdp"), (6, "ddp")):
        words = (recipe, f"parallel.strategy={strategy}", f"data.workers={draw.choice([0, 1, 3])}")
        whole, killed = (runs / f"{kind}-{ranks}-{strategy}" for kind in ("whole", "killed"))
        code, text = train(*words, f"run_name={whole.name}", world_size=ranks)
        assert code == 0, text
        kills = 0
        for _ in range(3):
            at, after_s = len(metrics(killed)) + draw.randrange(5), draw.random()
            end = [0.0]

            def now(at=at, after_s=after_s, end=end, killed=killed):
                if len(metrics(killed)) >= at and not end[0]:
                    end[0] = time.monotonic() + after_s
                return 0 < end[0] < time.monotonic()

            code, text = train(*words, f"run_name={killed.name}", world_size=ranks, kill_when=now)
            assert code in (-9, 0), text  # a short run may be faster
            kills += code == -9
        code, text = train(*words, f"run_name={killed.name}", world_size=ranks)
        assert code == 0, text
        assert kills
        assert exactly(killed) == exactly(whole)
        assert digests(killed) == digests(whole) == digests(runs / "whole-1-ddp")
        ends = [[line["domains"] for line in metrics(f, "eval")] for f in (killed, whole)]
        assert ends[0] == ends[1]
