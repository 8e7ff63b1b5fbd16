"""Speed of the data preparation: tokenisation against the tokenizers library alone, and each stage.

    python -m benchmarks.prepare data/demo/corpus

In: a folder of JSON lines. All cores prepare it, stage by stage. Then the same documents are
tokenised again, in turn, and the best times are compared:

    pipeline      the pipeline's stage: reads documents, leaves duplicates out, splits, stores ids
    one process   `encode_batch_fast` on texts in memory, with the library's threads on all cores
    processes     the same by a process per core without threads; only the calls count, as if they
                  were spread evenly

Out: a table on standard output; benchmarks/results/ keeps it.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from restomod.prepare import duplicates
from restomod.prepare.config import load_preparation
from restomod.prepare.documents import read_unit
from restomod.prepare.exact_duplicates import find_in_part
from restomod.prepare.executor import Executor, open_executor, run_stage
from restomod.prepare.files import find_files
from restomod.prepare.job import Job
from restomod.prepare.pieces import plan_units
from restomod.prepare.tokenise import (
    SPLITS,
    TOKENISE,
    job_tokenizer,
    kept_documents,
    plan_groups,
    tokenise_unit,
    write_group,
)
from restomod.prepare.vocabulary import make_tokenizer

UNIT_BYTES = 1_000_000
BATCH = 4096
Results = list[dict[str, Any]]


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="folder of JSON lines")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()
    print(f"commit {commit}; {os.cpu_count()} cores, {_processor()}")
    with tempfile.TemporaryDirectory() as folder:
        _run(arguments.corpus, arguments.repeats, Path(folder))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _run(corpus: Path, repeats: int, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"out": f"{folder}/out", "sources": {"corpus": {"paths": [str(corpus)]}}})
    )
    recipe = load_preparation([folder / "recipe.yaml"], ["tokenizer.sample_mb=10"])
    job = Job(recipe, folder / "work")
    with open_executor(recipe.execution) as workers:
        read, tokens = _stages(job, workers)
        texts = [
            document.text
            for unit, result in enumerate(read)
            for batch in kept_documents(job, unit, result["documents"], 1)
            for document in batch
        ]
        backend = job_tokenizer(job).backend

        def pipeline() -> None:
            shutil.rmtree(job.stage(TOKENISE))
            tasks = {n: (n, result["documents"], 1) for n, result in enumerate(read)}
            run_stage(workers, tokenise_unit, job, TOKENISE, tasks)

        def alone() -> None:
            for start in range(0, len(texts), BATCH):
                backend.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)

        def processes(turn: int) -> float:
            tasks = {n: (n, result["documents"]) for n, result in enumerate(read)}
            found = run_stage(workers, _encode_alone, job, f"encode {turn}", tasks)
            return sum(result["seconds"] for result in found) / len(os.sched_getaffinity(0))

        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        times = [
            {
                "pipeline": _seconds(pipeline),
                "one process": _seconds(alone),
                "processes": processes(n),
            }
            for n in range(repeats)
        ]
    best = {name: min(turn[name] for turn in times) for name in times[0]}
    for name, seconds in best.items():
        every = ", ".join(f"{turn[name]:.2f}" for turn in times)
        print(f"{name:12} {tokens / seconds / 1e6:6.3f} M tokens/s  (seconds: {every})")
    for name in ("one process", "processes"):
        print(f"speed of the pipeline / of {name}: {best[name] / best['pipeline']:.3f}")


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _stages(job: Job, workers: Executor) -> tuple[Results, int]:
    """Run the stages and print their speed; return what reading counted, and tokens."""
    files = {"corpus": find_files(job.recipe.sources["corpus"].paths).files}
    units = plan_units(files, {"corpus": False}, UNIT_BYTES)
    numbers = range(len(units))
    seconds: dict[str, float] = {}

    def stage(name: str, function: Callable[..., Any], tasks: dict[int, Any]) -> Results:
        began = time.perf_counter()
        results = run_stage(workers, function, job, name, tasks)
        seconds[name] = time.perf_counter() - began
        return results

    stage("start of workers", _nothing, dict.fromkeys(range(16), ()))
    read = stage("read", read_unit, {unit.number: (unit,) for unit in units})
    stage("exact_duplicates", find_in_part, {0: (0, 1, len(units))})
    stage(duplicates.SIGN, duplicates.sign_unit, {n: (n, 1) for n in numbers})
    buckets = range(job.recipe.deduplicate.near.buckets)
    stage(duplicates.MATCH, duplicates.match_bucket, {n: (n, len(units)) for n in buckets})
    stage(duplicates.CLUSTER, duplicates.cluster, {0: (len(units),)})
    of_units = [(n, result["documents"], result["text_bytes"]) for n, result in enumerate(read)]
    seconds["tokenizer"] = _seconds(lambda: make_tokenizer(job, {"corpus": of_units}, 1))
    tokenised = stage(TOKENISE, tokenise_unit, {n: (n, read[n]["documents"], 1) for n in numbers})
    sizes = [result["train"]["tokens"] for result in tokenised]
    groups = plan_groups(numbers, sizes, job_tokenizer(job).dtype.itemsize, 1 << 20)
    stage("write", write_group, {n: ("corpus", "train", f"{n}", g) for n, g in enumerate(groups)})

    documents = sum(result["steps"]["read"]["documents_in"] for result in read)
    megabytes = sum(result["steps"]["read"]["text_bytes_out"] for result in read) / 1e6
    tokens = sum(result[split]["tokens"] for result in tokenised for split in SPLITS)
    print(f"{documents} documents, {megabytes:.1f} MB; {tokens} tokens without duplicates")
    for name, taken in seconds.items():
        speed = f"{documents / taken:9.0f} documents/s {megabytes / taken:8.2f} MB/s"
        print(f"{name:16} {taken:7.2f} s  {speed if name != 'start of workers' else ''}".rstrip())
    return read, tokens


def _encode_alone(job: Job, unit: int, documents: int) -> dict[str, Any]:
    batches = [[d.text for d in batch] for batch in kept_documents(job, unit, documents, 1)]
    backend = job_tokenizer(job).backend
    began = time.perf_counter()
    for texts in batches:
        backend.encode_batch_fast(texts, add_special_tokens=False)
    return {"seconds": time.perf_counter() - began}


def _nothing(job: Job) -> dict[str, Any]:
    return {}


if __name__ == "__main__":
    main()
