"""Small data that every kind of test trains on, and runs in processes that need not import torch
anew."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.ranks import fork_server, free_port, rank_variables, train_in_child

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)  # recipes' cache_dir decides
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded; several ranks share the cores here

STREAMS = {"code": 160, "prose": 90, "science": 40}
"""Documents of each training stream."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands that a test runs in this process log to what is standard error then."""
    logger = logging.getLogger("restomod")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@dataclass
class Tiny:
    """A small corpus, its tokenizer, and a recipe that trains on it in seconds."""

    folder: Path
    recipe: dict

    def write(self, path: Path, **changes: object) -> Path:
        """Write the recipe, with dotted keys changed (`phases__slots` is the first phase's)."""
        recipe = json.loads(json.dumps(self.recipe))
        for key, value in changes.items():
            target = recipe
            *parents, last = key.split("__")
            for part in parents:
                target = target.setdefault(part, {}) if part != "phases" else target[part][0]
            target[last] = value
        path.write_text(yaml.safe_dump(recipe))
        return path


def documents(stream: str, count: int) -> list[str]:
    """Return made-up text: sentences of a few words, lengths from one word to thousands."""
    generator = np.random.default_rng(sum(map(ord, stream)))
    words = [f"{stream[:2]}{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(60)]
    texts = []
    for _ in range(count):
        length = max(1, int(generator.lognormal(3.2, 1.0)))
        picked = generator.zipf(1.5, size=length) % len(words)
        texts.append(" ".join(words[n] for n in picked))
    return texts


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    import train_tokenizer
    import write_mds

    folder = tmp_path_factory.mktemp("tiny")
    texts = {stream: documents(stream, count) for stream, count in STREAMS.items()}
    texts["code"] += ["", "x", "long " * 50_000]
    texts["heldout"] = documents("prose", 30)
    for stream, lines in texts.items():
        with (folder / f"{stream}.jsonl").open("w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in lines)
    trained = train_tokenizer.main(
        ["--vocab-size", "512", "--out", str(folder / "tokenizer"), "--input"]
        + [str(folder / f"{stream}.jsonl") for stream in STREAMS]
    )
    assert trained == 0
    datasets = [f"{folder}/mds/{stream}={folder}/{stream}.jsonl" for stream in texts]
    written = write_mds.main(
        ["--tokenizer", str(folder / "tokenizer"), "--size-limit", "2kb"]
        + [word for dataset in datasets for word in ("--dataset", dataset)]
    )
    assert written == 0
    recipe = {
        "run_name": "tiny",
        "runs_dir": str(folder / "runs"),
        "cache_dir": str(folder / "cache"),
        "tokenizer": str(folder / "tokenizer"),
        "model": {
            "layers": 3,
            "hidden_size": 32,
            "heads": 2,
            "intermediate_size": 48,
            "local_window": 16,
            "attention_dropout": 0.1,
        },
        "optimizer": {"lr": 1e-3},
        "data": {
            "streams": {stream: {"path": f"{folder}/mds/{stream}"} for stream in STREAMS},
            "lanes": 4,
            "workers": 1,
            "buffer_rows": 2,
        },
        "phases": [
            {
                "name": "pretrain",
                "slots": 24 * 4 * 512,
                "sequence_length": 64,
                "row_tokens": 512,
                "batch_rows": 4,
                "mixture": {"code": 0.5, "prose": 0.3, "science": 0.2},
                "schedule": {"warmup": 4096, "decay": 8192},
            }
        ],
        "evaluation": {
            "streams": {"heldout": {"path": f"{folder}/mds/heldout", "domain": "prose"}},
            "every_steps": 10,
            "rows": 2,
        },
        "checkpoint": {"every_steps": 5},
        "logging": {"wandb": {"mode": "disabled"}},
    }
    return Tiny(folder, recipe)


class Trainings:
    """Starts `train.py` in children of a process that has imported everything once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._context = fork_server()

    def __call__(
        self,
        *arguments: object,
        world_size: int = 1,
        kill_when: Callable[[], bool] | None = None,
        send: signal.Signals = signal.SIGKILL,
        to: range | None = None,
        nodes: Sequence[Path] = (),
        environment: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        """Run to the end; when `kill_when` holds, send a signal to all ranks or those of `to`.

        Return the exit code and what was printed. `nodes` makes each rank a node of its own that
        works in a folder of its own.
        """
        world_size = len(nodes) or world_size
        self._started += 1
        log = self._folder / f"{self._started}.log"
        port = free_port()
        ranks = []
        for rank in range(world_size):
            variables = dict(environment or {})
            if world_size > 1:
                variables |= rank_variables(rank, world_size, port)
            if world_size > 1 and nodes:
                variables |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "NODE_RANK": str(rank)}
            ranks.append(
                self._context.Process(
                    target=train_in_child,
                    args=(
                        [str(a) for a in arguments],
                        variables,
                        str(log),
                        nodes[rank] if nodes else None,
                    ),
                )
            )
            ranks[-1].start()
        if kill_when is not None:
            while ranks[0].is_alive() and not kill_when():
                time.sleep(0.005)
            for n in to or range(world_size):
                with contextlib.suppress(ProcessLookupError):  # of one that has just ended
                    os.kill(ranks[n].pid, send)
        for rank in ranks:
            rank.join(timeout=300)
        codes = [rank.exitcode for rank in ranks]
        text = log.read_text() if log.exists() else ""
        assert len(set(codes)) == 1, f"ranks ended with {codes}:\n{text}"
        return codes[0], text


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    return Trainings(tmp_path_factory.mktemp("logs"))


def metrics(run_folder: Path, event: str = "train") -> list[dict]:
    """Return a run's metrics of one kind, in order."""
    path = run_folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = [
        json.loads(line) for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]
    return [line for line in lines if line["event"] == event]
