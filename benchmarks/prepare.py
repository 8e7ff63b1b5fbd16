"""Speed of the data preparation: tokenisation against the tokenizers library alone, and each stage.

    python -m benchmarks.prepare data/demo/corpus

In: a folder of JSON lines; without one, the demo's corpus is harvested. All cores prepare it, stage
by stage. Then the same documents are tokenised again, in turn, and the best times are compared:

    pipeline      the pipeline's stage: reads documents, leaves duplicates out, splits, stores ids
    one process   `encode_batch_fast` on texts in memory, with the library's threads on all cores
    processes     the same by a process per core without threads; only the calls count, as if they
                  were spread evenly
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.record import ROOT, Report, parser_of, seconds_of
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
DEMO_MB = {"code": 8.0, "prose": 5.0, "science": 5.0}
STARTS = "start of workers"
Results = list[dict[str, Any]]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("corpus", type=Path, nargs="?", help="folder of JSON lines")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.quick:
        options.repeats = 1
    with tempfile.TemporaryDirectory() as folder, Report(options) as report:
        corpus = options.corpus or _harvest(Path(folder), 0.06 if options.quick else 1.0)
        _run(report, corpus, options.repeats, Path(folder))


def _harvest(folder: Path, times: float) -> Path:
    """Write a corpus, `times` the demo's."""
    caps = [f"--{domain}-mb={times * mb}" for domain, mb in DEMO_MB.items()]
    script = ROOT / "data_prep" / "harvest.py"
    subprocess.run(
        [sys.executable, script, "--out", folder / "corpus", *caps],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return folder / "corpus"


def _run(report: Report, corpus: Path, repeats: int, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"out": f"{folder}/out", "sources": {"corpus": {"paths": [str(corpus)]}}})
    )
    recipe = load_preparation([folder / "recipe.yaml"], ["tokenizer.sample_mb=10"])
    job = Job(recipe, folder / "work")
    with open_executor(recipe.execution) as workers:
        read, tokens = _stages(report, job, workers)
        texts = [
            document.text
            for unit, result in enumerate(read)
            for batch in kept_documents(job, unit, result["documents"], 1)
            for document in batch
        ]
        backend = job_tokenizer(job).backend

        def pipeline() -> None:
            shutil.rmtree(job.stage(TOKENISE))
            tasks = {n: (n, result["documents"], 1, 1) for n, result in enumerate(read)}
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
                "pipeline": seconds_of(pipeline),
                "one process": seconds_of(alone),
                "processes": processes(n),
            }
            for n in range(repeats)
        ]
    best = {name: min(turn[name] for turn in times) for name in times[0]}
    table = report.table(
        f"tokenisation, {tokens:,} tokens, the best of {repeats}",
        "who",
        "M tokens/s",
        "pipeline / this",
    )
    for name, seconds in best.items():
        table.row(name, f"{tokens / seconds / 1e6:.2f}", f"{seconds / best['pipeline']:.2f}x")
        report.figures[f"{name}, tokens/s"] = tokens / seconds
        if name != "pipeline":
            report.figures[f"pipeline / {name}"] = seconds / best["pipeline"]


def _stages(report: Report, job: Job, workers: Executor) -> tuple[Results, int]:
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

    stage(STARTS, _nothing, dict.fromkeys(range(16), ()))
    read = stage("read", read_unit, {unit.number: (unit,) for unit in units})
    stage("exact_duplicates", find_in_part, {0: (0, 1, len(units))})
    stage(duplicates.SIGN, duplicates.sign_unit, {n: (n, 1) for n in numbers})
    buckets = range(job.recipe.deduplicate.near.buckets)
    stage(duplicates.MATCH, duplicates.match_bucket, {n: (n, len(units)) for n in buckets})
    stage(duplicates.CLUSTER, duplicates.cluster, {0: (len(units),)})
    of_units = [(n, result["documents"], result["text_bytes"]) for n, result in enumerate(read)]
    seconds["tokenizer"] = seconds_of(lambda: make_tokenizer(job, {"corpus": of_units}, 1))
    tokenised = stage(
        TOKENISE, tokenise_unit, {n: (n, read[n]["documents"], 1, 1) for n in numbers}
    )
    sizes = [result["train"]["tokens"] for result in tokenised]
    groups = plan_groups(numbers, sizes, job_tokenizer(job).dtype.itemsize, 1 << 20)
    stage("write", write_group, {n: ("corpus", "train", f"{n}", g) for n, g in enumerate(groups)})

    documents = sum(result["steps"]["read"]["documents_in"] for result in read)
    megabytes = sum(result["steps"]["read"]["text_bytes_out"] for result in read) / 1e6
    tokens = sum(result[split]["tokens"] for result in tokenised for split in SPLITS)
    table = report.table(
        f"{documents:,} documents, {megabytes:.1f} MB; {tokens:,} tokens without duplicates",
        "stage",
        "s",
        "documents/s",
        "MB/s",
    )
    for name, taken in seconds.items():
        speeds = f"{documents / taken:,.0f}", f"{megabytes / taken:.2f}"
        table.row(name, f"{taken:.2f}", *(("", "") if name == STARTS else speeds))
    worked = sum(taken for name, taken in seconds.items() if name not in (STARTS, "tokenizer"))
    cores = len(os.sched_getaffinity(0))
    report.figures["all stages but the tokenizer's training, tokens/s and core"] = (
        tokens / worked / cores
    )
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
