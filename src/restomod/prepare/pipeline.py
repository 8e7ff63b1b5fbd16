"""The whole preparation: raw text in, shards, tokenizer, manifest and data card out.

In: a `Preparation`. Out: its `out` folder, complete or not there:

    SOURCE/train/, SOURCE/heldout/   MDS data sets, as training recipes take them
    tokenizer/                       the tokenizer that they were made with
    manifest.json                    counts, tokens, lengths, sources, licences, recipe, inputs
    rejects.jsonl                    what could not be read, with file and line; some of the rest
    card.html, timing.json           the data card, and when and how fast it was made

All but the last line is the same whoever does the work. `restomod prepare` calls this. The stages,
each a set of tasks whose results are kept until the job is done: read (with normalisation, quality
rules and decontamination), exact duplicates, near duplicates in three steps, tokenizer, tokenise,
write.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.prepare import duplicates, exact_duplicates
from restomod.prepare.atomic import read_json, write_json
from restomod.prepare.config import Preparation, parse_size
from restomod.prepare.documents import STAGE as READ
from restomod.prepare.documents import read_unit
from restomod.prepare.executor import Executor, local_workers, open_executor, run_stage
from restomod.prepare.files import MANIFEST, Found, InputFile, find_files, is_remote, real_path
from restomod.prepare.job import (
    Job,
    close_job,
    describe_inputs,
    differences,
    fingerprint,
    open_job,
    remove_leftover,
)
from restomod.prepare.manifest import (
    Results,
    bad_input,
    broken_files,
    make_manifest,
    write_rejects,
)
from restomod.prepare.pieces import plan_units
from restomod.prepare.publish import (
    check_target,
    move_into_place,
    publish_tokenizer,
    published_manifest,
)
from restomod.units import counted

logger = logging.getLogger(__name__)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TIMING = "timing.json"
CARD = "card.html"
REJECTS = "rejects.jsonl"


def prepare(recipe: Preparation, *, tokenizer_only: bool = False, refresh: bool = False) -> str:
    """Carry out a preparation, or what an earlier call left of it; return what to tell the user.

    With `tokenizer_only` it ends when the tokenizer is in `out`; the work that this took is used by
    a later call. Raises UserError for input that is missing, for too much that is unreadable, and,
    unless `refresh` is set, for an output or a job of another recipe or input.
    """
    recipe = _absolute(recipe)
    found = {
        name: _find(recipe, f"sources.{name}.paths", source.paths, source.split)
        for name, source in recipe.sources.items()
    }
    files = {name: of_source.files for name, of_source in found.items()}
    evaluation = {
        path: _find(recipe, "decontaminate.against", [path]).files
        for path in recipe.decontaminate.against
    }
    inputs = describe_inputs({**files, **{f"decontaminate {p}": f for p, f in evaluation.items()}})
    inputs += _tokenizer_inputs(recipe)
    wanted = fingerprint(recipe, inputs)
    published = published_manifest(recipe.out)
    if published is not None:
        changed = differences(published, wanted)
        if not changed:
            remove_leftover(recipe.work_folder)
            return f"{recipe.out}: up to date\n"
        if not refresh:
            raise UserError(
                f"{recipe.out}: was prepared with another recipe or input "
                f"({'; '.join(changed[:5])}); pass --refresh to prepare it anew, or choose another "
                "out"
            )
    else:
        check_target(recipe.out)
    skipped = {name: dict(sorted(f.skipped.items())) for name, f in found.items()}
    with (
        _disk_full_is_said(recipe),
        open_job(recipe, wanted, refresh) as job,
        open_executor(recipe.execution) as executor,
    ):
        run = _Run(job, executor)
        run.read(files, evaluation)
        run.deduplicate()
        tokenizer = run.tokenizer()
        if tokenizer_only:
            publish_tokenizer(job, tokenizer, recipe.out)
            return _tokenizer_summary(recipe, tokenizer)
        run.tokenise()
        datasets = run.write()
        manifest = run.describe(inputs, skipped, tokenizer, datasets)
        move_into_place(job, recipe.out)
        close_job(job)
    return summary(recipe, manifest)


@contextmanager
def _disk_full_is_said(recipe: Preparation) -> Iterator[None]:
    """Turn the want of room, in this process or a worker, into a message."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"{recipe.work_dir} or {recipe.out}: cannot be written: {error.strerror}; make room "
            "and run again to go on"
        ) from error


class _Run:
    """The stages of a job."""

    def __init__(self, job: Job, executor: Executor) -> None:
        self._job = job
        self._executor = executor
        self._started = time.monotonic()
        self._results = Results([], [])
        self._seconds = job.folder / "seconds.json"

    @contextmanager
    def _timed(self, stage: str) -> Any:
        """Add to the stage's wall time, which a job that was killed keeps."""
        began = time.monotonic()
        yield
        spent = read_json(self._seconds) if self._seconds.is_file() else {}
        spent[stage] = round(spent.get(stage, 0) + time.monotonic() - began, 3)
        write_json(self._seconds, spent)

    def read(
        self, files: dict[str, list[InputFile]], evaluation: dict[str, list[InputFile]]
    ) -> None:
        """Read all units. Raises UserError if too much is unreadable."""
        from restomod.prepare.evaluation import build_index

        recipe = self._job.recipe
        lined = {name: s.text_documents == "line" for name, s in recipe.sources.items()}
        units = plan_units(files, lined, parse_size(recipe.unit_size, "unit_size"))
        with self._timed(READ):
            if evaluation:
                build_index(self._job, evaluation)
            tasks = {unit.number: (unit,) for unit in units}
            read = run_stage(self._executor, read_unit, self._job, READ, tasks)
        self._results = Results(units, read)
        self._check_input(sum(map(len, files.values())))

    def _check_input(self, files: int) -> None:
        """Stop if too much of the input cannot be read, or if nothing is left."""
        reading = self._job.recipe.reading
        records, reasons, empty = bad_input(self._results)
        broken = broken_files(self._job, self._results)
        bad, listed = reasons.total(), _by_number(reasons)
        rejects = self._job.folder / REJECTS
        problem = ""
        if bad > reading.max_rejected_share * records:
            problem = (
                f"{bad} of {records} records cannot be read ({listed}), more than "
                f"reading.max_rejected_share {reading.max_rejected_share:g} allows"
            )
        elif len(broken) > reading.max_broken_files_share * files:
            problem = (
                f"{len(broken)} of {files} files cannot be read to their end "
                f"({', '.join(sorted(broken)[:3])}), more than reading.max_broken_files_share "
                f"{reading.max_broken_files_share:g} allows"
            )
        elif not sum(result["documents"] for result in self._results.read):
            dropped = reasons + empty
            for result in self._results.read:
                for step in ("quality", "decontaminate"):
                    dropped.update(result["steps"][step]["dropped"])
            problem = f"no document is left of {records} records ({_by_number(dropped)})"
        if problem:
            write_rejects(self._job, self._results, rejects)
            raise UserError(f"{problem}; {rejects} lists them by file and line")
        if bad:
            logger.warning(
                "%d of %d records could not be read (%s); %s will list them",
                *(bad, records, listed, f"{self._job.recipe.out}/{REJECTS}"),
            )

    def deduplicate(self) -> None:
        """Find exact, then near duplicates."""
        job, results = self._job, self._results
        config = job.recipe.deduplicate
        documents = [result["documents"] for result in results.read]
        results.parts = parts = exact_duplicates.parts_for(sum(documents))
        units = len(results.units)
        if config.exact:
            with self._timed(exact_duplicates.STAGE):
                tasks = {part: (part, parts, units) for part in range(parts)}
                found = run_stage(
                    self._executor,
                    exact_duplicates.find_in_part,
                    job,
                    exact_duplicates.STAGE,
                    tasks,
                )
            results.exact = [
                sum(counts) for counts in zip(*(f["by_unit"] for f in found), strict=True)
            ]
        if config.near.enabled:
            with self._timed(duplicates.FOLDER):
                run_stage(
                    self._executor,
                    duplicates.sign_unit,
                    job,
                    duplicates.SIGN,
                    {unit: (unit, parts) for unit in range(units)},
                )
                run_stage(
                    self._executor,
                    duplicates.match_bucket,
                    job,
                    duplicates.MATCH,
                    {bucket: (bucket, units) for bucket in range(config.near.buckets)},
                )
                (clustered,) = run_stage(
                    self._executor, duplicates.cluster, job, duplicates.CLUSTER, {0: (units,)}
                )
            results.near = clustered["by_unit"]

    def tokenizer(self) -> dict[str, Any]:
        """Make the tokenizer; return what the manifest says of it."""
        from restomod.prepare.vocabulary import make_tokenizer

        results = self._results
        units = {
            name: [
                (n, results.read[n]["documents"], results.read[n]["text_bytes"])
                for n in results.of_source(name)
            ]
            for name in self._job.recipe.sources
        }
        logger.info("tokenizer: %s", self._job.recipe.tokenizer.path or "learns its vocabulary")
        with self._timed("tokenizer"):
            return make_tokenizer(self._job, units, results.parts)

    def tokenise(self) -> None:
        """Tokenise all units."""
        from restomod.prepare.tokenise import TOKENISE, tokenise_unit

        results, execution = self._results, self._job.recipe.execution
        # A few large compressed files are fewer units than there are cores.
        workers = 1 if execution.ray else local_workers(execution)
        threads = max(1, workers // len(results.units))
        tasks = {
            unit: (unit, result["documents"], results.parts, threads)
            for unit, result in enumerate(results.read)
        }
        with self._timed(TOKENISE):
            results.tokens = run_stage(self._executor, tokenise_unit, self._job, TOKENISE, tasks)

    def write(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Write the shards and their indexes; return restomod.json's content by source, split."""
        from restomod.prepare.shards import describe, write_description
        from restomod.prepare.tokenise import (
            SPLITS,
            WRITE,
            job_tokenizer,
            join_groups,
            plan_groups,
            write_group,
        )

        job, results = self._job, self._results
        tokenizer = job_tokenizer(job)
        shard_bytes = parse_size(job.recipe.shards.size, "shards.size")
        tasks: dict[int, tuple[Any, ...]] = {}
        for source in job.recipe.sources:
            units = results.of_source(source)
            for split in SPLITS:
                tokens = [results.tokens[n][split]["tokens"] for n in units]
                groups = plan_groups(units, tokens, tokenizer.dtype.itemsize, shard_bytes)
                for number, group in enumerate(groups):
                    tasks[len(tasks)] = (source, split, f"{number:05d}", group)
        with self._timed(WRITE):
            written = run_stage(self._executor, write_group, job, WRITE, tasks)
            by_split: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
            for (source, split, part, _), result in zip(tasks.values(), written, strict=True):
                by_split.setdefault((source, split), {})[part] = result
            datasets: dict[str, dict[str, dict[str, Any]]] = {}
            for (source, split), parts in by_split.items():
                tally = join_groups(job, source, split, parts, tokenizer.vocab_size)
                units = results.of_source(source)
                attributes = describe(
                    tally,
                    tokenizer,
                    text_bytes=sum(results.tokens[n][split]["text_bytes"] for n in units),
                    dropped={},
                    altered={},
                    sources=[source],
                )
                write_description(job.output / source / split, attributes, tally.counts)
                datasets.setdefault(source, {})[split] = attributes
        if not datasets:
            raise UserError("no document with a token is left; see the quality rules and filters")
        return datasets

    def describe(
        self,
        inputs: list[dict[str, Any]],
        skipped: dict[str, dict[str, int]],
        tokenizer: dict[str, Any],
        datasets: dict[str, dict[str, dict[str, Any]]],
    ) -> dict[str, Any]:
        """Write manifest, rejects, timing and card; return the manifest."""
        from restomod.prepare.card import write_card

        job = self._job
        examples = write_rejects(job, self._results, job.output / REJECTS)
        manifest = make_manifest(job, self._results, inputs, skipped, tokenizer, datasets, examples)
        seconds = read_json(self._seconds)
        timing = {
            "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "seconds": round(sum(seconds.values()), 2),
            "seconds_by_stage": seconds,
        }
        write_json(job.output / TIMING, timing)
        # One stage of tasks does the first three steps.
        by_name = {name.replace("_", " "): spent for name, spent in seconds.items()}
        stages = [{**s, "seconds": by_name.get(s["name"])} for s in manifest["stages"]]
        write_card({**manifest, **timing, "stages": stages}, job.output / CARD)
        write_json(job.output / MANIFEST, manifest)
        return manifest


def _absolute(recipe: Preparation) -> Preparation:
    """Return the recipe with a local `out` and work folder as absolute paths."""
    out = recipe.out if is_remote(recipe.out) else os.path.abspath(recipe.out)
    recipe = dataclasses.replace(recipe, out=out)
    return dataclasses.replace(recipe, work_dir=str(recipe.work_folder.absolute()))


def _find(recipe: Preparation, key: str, paths: Sequence[str], split: str = "") -> Found:
    """Return the files that a key names, without what this job writes itself."""
    try:
        return find_files(paths, split, [real_path(recipe.out), real_path(recipe.work_dir)])
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _tokenizer_inputs(recipe: Preparation) -> list[dict[str, Any]]:
    """Return the files of the tokenizers that the recipe names. Raises UserError if one is bad."""
    from restomod.data.tokenizer import load_tokenizer

    described = []
    for key in ("path", "reference"):
        path = getattr(recipe.tokenizer, key)
        if path:
            described.append(
                {
                    "source": f"tokenizer.{key}",
                    "path": path,
                    "version": load_tokenizer(path).fingerprint,
                }
            )
    return described


def _tokenizer_summary(recipe: Preparation, described: dict[str, Any]) -> str:
    from restomod.prepare.fertility import Fertility, format_table

    names = [field.name for field in dataclasses.fields(Fertility)]
    measured = {
        domain: {
            name: Fertility(**{key: values[key] for key in names})
            for name, values in of_domain.items()
        }
        for domain, of_domain in described["fertility"].items()
    }
    return (
        f"{recipe.out}/tokenizer: {described['size']} tokens, {described['unused_tokens']} of them "
        f"unused\n{format_table(measured)}\n"
    )


def summary(recipe: Preparation, manifest: dict[str, Any]) -> str:
    """Say what was made, and what a training recipe says to read it."""
    out = os.path.relpath(recipe.out) if Path(recipe.out).is_relative_to(Path.cwd()) else recipe.out
    lines = [f"{recipe.out}: {CARD} describes it"]
    for source in manifest["sources"]:
        tokens, documents = source["tokens"], source["documents"]
        held = source["splits"].get("heldout", {}).get("documents", 0)
        ratio = source["text_bytes"] / max(1, tokens)
        lines.append(
            f"{source['name']}: {counted(documents, 'document')}, {held:,} of them held out, "
            f"{tokens:,} tokens, {ratio:.2f} bytes a token"
        )
    lines += [f"note: {note}" for note in manifest["notes"]]
    lines += ["", "in a training recipe:", _as_recipe(out, manifest)]
    return "\n".join(lines)


def _as_recipe(out: str, manifest: dict[str, Any]) -> str:
    """Return the part of a training recipe that reads an output."""
    import yaml

    part: dict[str, Any] = {"tokenizer": f"{out}/tokenizer"}
    for section, split in (("data", "train"), ("evaluation", "heldout")):
        there = [source["name"] for source in manifest["sources"] if split in source["splits"]]
        streams = {name: {"path": f"{out}/{name}/{split}"} for name in there}
        part |= {section: {"streams": streams}} if streams else {}
    return yaml.safe_dump(part, sort_keys=False, default_flow_style=None, width=1000)


def _by_number(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason}: {n}" for reason, n in reasons.most_common())
