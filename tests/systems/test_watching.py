"""A run is shown the same everywhere, whatever processes it takes, and training does not notice."""

import http.server
import json
import signal
import socket
import threading
import time
from contextlib import contextmanager

import psutil
import pytest

from tests.conftest import Tiny, Trainings, metrics
from tests.integration.test_resume import exactly
from tests.wandb_files import wandb_files
from tests.webhook import webhook

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def recipe(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory):
    return tiny.write(tmp_path_factory.mktemp("recipe") / "recipe.yaml")


@pytest.fixture(scope="module")
def unwatched(tiny, train, recipe):
    code, text = train(recipe, "run_name=unwatched", "evaluation.samples=0")
    assert code == 0, text
    return tiny.folder / "runs" / "unwatched"


class Watched:
    """A run that was killed, stopped and completed, with all that shows it."""

    def __init__(self, tiny: Tiny, train: Trainings, recipe) -> None:
        self.folder = tiny.folder / "runs" / "watched"
        words = [
            recipe, "run_name=watched", "logging.wandb.mode=offline", "logging.tensorboard=true",
            "logging.alerts.webhook=OUR_HOOK", "evaluation.samples=3",
        ]  # fmt: skip

        def lines(n: int) -> bool:
            time.sleep(0.3)  # W&B's process has the lines that are there
            return len(metrics(self.folder)) >= n

        with webhook(refusals=1) as hook:
            self.secret = hook.address
            variables = {"OUR_HOOK": hook.address, "WANDB_X_STATS_SAMPLING_INTERVAL": "0.1"}
            code, self.text = train(*words, kill_when=lambda: lines(8), environment=variables)
            assert code == -9, self.text
            code, text = train(
                *words, kill_when=lambda: lines(14), send=signal.SIGTERM, environment=variables
            )
            assert code == 75, text
            self.text += text
            code, text = train(*words, environment=variables)
            assert code == 0, text
            self.text += text
            self.messages = hook.messages
        end = time.monotonic() + 30
        while len(files := wandb_files(self.folder)) < 3 or any(f.exit_code is None for f in files):
            assert time.monotonic() < end, [file.exit_code for file in files]
            time.sleep(0.1)
        self.files = files


@pytest.fixture(scope="module")
def watched(tiny, train, recipe):
    return Watched(tiny, train, recipe)


def test_being_watched_changes_no_number(watched, unwatched):
    assert exactly(watched.folder) == exactly(unwatched)
    ends = [metrics(folder, "eval")[-1]["domains"] for folder in (watched.folder, unwatched)]
    assert ends[0] == ends[1]
    assert metrics(unwatched, "samples") == []
    assert not (unwatched / "wandb").exists()
    assert not (unwatched / "tensorboard").exists()


def test_wandb_has_one_run_with_every_step_once_and_in_order(watched):
    (run_id,) = {file.id for file in watched.files}
    assert run_id.startswith("watched-")
    rows = [row for file in watched.files for row in file.rows]
    train = [row for row in rows if "train/loss" in row]
    lines = metrics(watched.folder)
    assert [row["train/step"] for row in train] == list(range(1, 25))
    for row, line in zip(train, lines, strict=True):
        assert row["tokens"] == line["tokens"]
        for name in ("loss", "grad_norm", "clip_rate", "lr", "mask_rate", "batch_rows"):
            assert row[f"train/{name}"] == line[name]
        assert row["mixture/code"] == line["mixture"]["code"]
    assert [row["eval/step"] for row in rows if "eval/prose/loss" in row] == [10, 20, 24]
    assert sum("events/start" in row for row in rows) == 1
    assert sum("events/resume" in row for row in rows) == 2
    assert sum("events/stop" in row for row in rows) == 1
    assert rows[-1]["events/end"] == 1
    assert [file.exit_code for file in watched.files] == [1, 0, 0]


def test_wandb_is_told_what_the_run_is_made_of(watched):
    for file in watched.files:
        assert ("*", "tokens") in file.metrics
        assert file.config["phases"][0]["sequence_length"] == 64
        about = file.config["about"]
        assert about["data"]["data.streams.code"]
        assert about["data"]["tokenizer"]
        assert len(about["model"]["sha256"]) == 16
        assert about["model"]["parameters"] > 1000
        assert len(about["git"]["commit"]) == 40
        assert (file.path.parent / "files" / "config.yaml").exists()
    assert any(key.startswith("cpu") for file in watched.files for key in file.stats)


def test_wandb_shows_samples_and_where_checkpoints_are(watched):
    tables = [table for file in watched.files for table in file.tables("samples")]
    by_evaluation = [
        [dict(zip(t["columns"], row, strict=True)) for row in t["data"]] for t in tables
    ]
    assert [rows[0]["step"] for rows in by_evaluation] == [10, 20, 24]
    for rows in by_evaluation:
        assert [row["text"] for row in rows] == [row["text"] for row in by_evaluation[0]]
        assert all("[MASK]" in row["text"] and row["guesses"] for row in rows)
    checkpoints = [a for file in watched.files for a in file.artifacts if a.type == "checkpoint"]
    last = checkpoints[-1]
    assert set(last.aliases) == {"latest", "step-00000024"}
    references = {entry.ref for entry in last.manifest.contents}
    folder = watched.folder / "checkpoints" / "step-00000024"
    assert f"{folder.as_uri()}/manifest.json" in references
    facts = json.loads(last.metadata)
    assert (
        facts["heldout_loss"]["prose"]
        == metrics(watched.folder, "eval")[-1]["domains"]["prose"]["loss"]
    )


def test_tensorboard_has_every_step_once(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(watched.folder / "tensorboard"))
    board.Reload()
    lines = metrics(watched.folder)
    points = board.Scalars("train/loss")
    assert [point.step for point in points] == [line["tokens"] for line in lines]
    assert [point.value for point in points] == pytest.approx([line["loss"] for line in lines])
    assert [point.step for point in board.Scalars("eval/prose/loss")] == [20480, 40960, 49152]
    assert "samples/prose/0/text_summary" in board.Tags()["tensors"]


def test_people_are_told_of_the_stop_and_the_end(watched):
    stop, end = watched.messages
    assert (stop["event"], stop["reason"], stop["run"]) == ("stop", "SIGTERM", "watched")
    assert stop["step"] == metrics(watched.folder, "stop")[0]["step"]
    assert stop["tokens"] == stop["step"] * 2048
    assert (end["event"], end["step"]) == ("end", 24)
    assert end["host"] == socket.gethostname()
    assert "complete" in end["text"]
    alerts = [alert for file in watched.files for alert in file.alerts]
    assert [alert.title for alert in alerts] == ["stop", "end"]


def test_secrets_are_nowhere(watched):
    secret = watched.secret.rpartition("/")[2].encode()
    files = [path for path in watched.folder.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert [path for path in files if secret in path.read_bytes()] == []
    assert secret.decode() not in watched.text


class Deaf(http.server.BaseHTTPRequestHandler):
    """Says that it is there, and fails at everything else."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def server(kind: str):
    """Yield the address of a W&B server that is of no use."""
    if kind == "fails":
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Deaf) as deaf:
            threading.Thread(target=deaf.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{deaf.server_port}"
            deaf.shutdown()
        return
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        port = listening.getsockname()[1]
        if kind == "refuses":
            listening.close()
        yield f"http://127.0.0.1:{port}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refuses", "is silent", "fails"])
def test_server_that_does_not_answer_stops_and_slows_nothing(tiny, train, recipe, unwatched, kind):
    name = kind.replace(" ", "-")
    folder = tiny.folder / "runs" / name
    with server(kind) as address:
        code, text = train(
            recipe, f"run_name={name}", "logging.wandb.mode=online",
            environment={"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY},
        )  # fmt: skip
    assert code == 0, text
    assert "W&B cannot be reached" in text
    assert exactly(folder) == exactly(unwatched)
    file = [file for file in wandb_files(folder) if "offline" in str(file.path)][-1]
    assert [row["train/step"] for row in file.rows if "train/loss" in row] == list(range(1, 25))
    assert file.rows[-1]["events/end"] == 1
    assert file.exit_code == 0
    assert KEY not in text
    assert not any(
        KEY.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file()
    )


def test_hang_is_told_before_the_job_ends(tiny, train, recipe):
    folder = tiny.folder / "runs" / "hangs"
    stopped = []

    def stop_the_loader() -> None:
        while len(metrics(folder)) < 3:
            time.sleep(0.05)
        servers = psutil.Process().children()
        ranks = [rank for server in servers for rank in server.children()]
        stopped.extend(loader for rank in ranks for loader in rank.children())
        stopped[0].suspend()

    threading.Thread(target=stop_the_loader, daemon=True).start()
    with webhook() as hook:
        code, text = train(
            recipe, "run_name=hangs", "logging.alerts.webhook=OUR_HOOK", "faults.hang_timeout=6s",
            "phases.pretrain.slots=4096000",
            environment={"OUR_HOOK": hook.address},
        )  # fmt: skip
    for loader in stopped:
        loader.kill()
    assert code == 75, text
    (message,) = hook.messages
    assert (message["event"], message["run"]) == ("hang", "hangs")
    assert message["step"] == metrics(folder)[-1]["step"]
    assert message["reason"] == "nothing was finished for 6 s"


def test_webhook_without_its_variable_is_refused(train, recipe):
    words = [recipe, "run_name=unset", "logging.alerts.webhook=NOBODY_SET_THIS"]
    code, text = train(*words)
    assert code == 2
    assert "NOBODY_SET_THIS of rank 0 is not set" in text
    code, text = train(*words, environment={"NOBODY_SET_THIS": "s3cr3t"})
    assert code == 2
    assert "s3cr3t" not in text
