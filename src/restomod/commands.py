"""What `train.py` and each `restomod COMMAND` do, once their words are parsed.

In: parsed arguments. Out: an exit code; UserError for mistakes, which `cli.py` tells. Heavy imports
wait until a command needs them.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from restomod.errors import UserError, within
from restomod.interrupts import SAVES, Interrupts
from restomod.train.launch import adopt_launcher
from restomod.vectors import command as embed_command

if TYPE_CHECKING:
    from restomod.config import Recipe

STARTED = time.monotonic()
NODE_RANKS = 8
"""Ranks of a node where nobody says how many: GPUs of a usual server."""


def _set_up_process() -> None:
    """Show our messages from rank 0, warnings from every rank, and no warnings of libraries about
    their own ways; let CPU threads sleep while they wait."""
    # Read when torch is loaded. OpenMP's default is to spin, which stalls every kernel as soon as
    # anything else wants a core: with one busy neighbour on 2 cores, small steps took 6 to 15 times
    # longer. GNU's, which torch brings, may spin for microseconds: alone 16 to 20 % faster than not
    # at all, with the neighbour 14 % slower.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    warnings.filterwarnings("ignore", module=r"(pydantic|composer|torchmetrics|torch|wandb)\b")
    rank = int(os.environ.get("RANK", "0"))
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s")
    )
    logger = logging.getLogger("restomod")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False


def read_recipe(words: Sequence[str], world_size: int, node_ranks: int) -> Recipe:
    """Load and check the recipe that the command line describes, for `world_size` ranks of which a
    node runs `node_ranks`."""
    from restomod.recipe import check_world, load_recipe
    from restomod.strict import split_words

    recipe = load_recipe(*split_words(words))
    check_world(recipe, world_size, node_ranks)
    return recipe


def train(words: Sequence[str]) -> int:
    adopt_launcher(os.environ)
    _set_up_process()
    from restomod.train.faults.stopping import Stopper, StopRequested, is_lost_rank
    from restomod.units import parse_duration

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    with Stopper().listening() as stopper:
        recipe = read_recipe(words, world_size, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        try:
            limit_s = parse_duration(recipe.stop_after)
            deadline = STARTED + limit_s if limit_s else float("inf")
            stopper.watch(recipe.run_folder, deadline, functools.partial(_leave, recipe.run_folder))
            stopper.hold(lossless=True)
            from restomod.data.sources import open_sources

            sources = open_sources(recipe, world_size)  # mistakes show before torch is imported
            with stopper.staying():
                from restomod.train.builder import prepare_run, train

            with stopper.leaving_together():
                train(prepare_run(recipe, sources), STARTED, stopper)
        except StopRequested as stop:
            if not stop.agreed:
                if code := stopper.others_code():
                    return code  # the launcher asked, and to go on would fail again
                stopper.tell()
            return _leave(recipe.run_folder, stop.reason, stop.step)
        except Exception as error:
            if is_lost_rank(error) and (code := stopper.others_code()):
                return code  # which tells why
            stopper.fail(2 if isinstance(error, UserError) else 1)
            raise
        finally:
            stopper.ignore()
    return 0


def _leave(folder: Path, reason: str, step: int = 0) -> int:
    """Say that a stopped run wants to go on, and from which step; return the rank's exit code."""
    from restomod.train.checkpoints.manifest import newest_step
    from restomod.train.faults.stopping import exit_code, leave_requeue

    if os.environ.get("LOCAL_RANK", "0") == "0":
        step = step or newest_step(folder)  # it had not gone on yet
        leave_requeue(folder, reason, step)
        told = f"saved at step {step}" if step else "stopped before its first checkpoint"
        logging.getLogger("restomod").info("%s: %s; the same command goes on", folder, told)
    return exit_code()


def prepare(arguments: argparse.Namespace) -> int:
    _set_up_process()
    from restomod.prepare.config import load_preparation
    from restomod.strict import split_words

    recipe = load_preparation(*split_words(arguments.recipe))
    from restomod.prepare.pipeline import prepare

    try:
        made = prepare(recipe, tokenizer_only=arguments.tokenizer_only, refresh=arguments.refresh)
    except KeyboardInterrupt:
        logging.getLogger("restomod").info(
            "interrupted; the same command goes on with the tasks that are left"
        )
        raise
    sys.stdout.write(made)
    return 0


def plan(arguments: argparse.Namespace) -> int:
    from restomod.recipe import load_recipe
    from restomod.strict import split_words
    from restomod.tools.plan.parts import target
    from restomod.tools.plan.plan import make_plan

    aim = target(arguments, NODE_RANKS)
    plan = make_plan(load_recipe(*split_words(arguments.recipe)), aim)
    sys.stdout.write(plan.text())
    if arguments.html:
        from restomod.tools.plan.page import write_page

        write_page(plan, arguments.html)
        sys.stdout.write(f"{arguments.html}\n")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    folder = arguments.recipe[0]
    if len(arguments.recipe) == 1 and ("://" in folder or Path(folder).is_dir()):
        from restomod.tools.folder import describe_folder

        sys.stdout.write(describe_folder(folder, arguments.tokenizer, arguments.json))
        return 0
    from restomod.tools.inspect import inspect_steps

    first, colon, last = arguments.steps.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UserError(f"--steps {arguments.steps}: write FROM:TO, FROM below TO, such as 0:20")
    ranks = arguments.world_size
    words = [*arguments.recipe, f"data.workers={arguments.workers}"]
    recipe = read_recipe(words, ranks, ranks)
    for line in inspect_steps(recipe, int(first), int(last), ranks, arguments.json):
        sys.stdout.write(line + "\n")
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    _set_up_process()
    if not arguments.suite:
        words = {"--baseline": arguments.baseline, "--seeds": arguments.seeds}
        words |= {"--out": arguments.out, "--all-checkpoints": arguments.all_checkpoints}
        if given := [word for word, value in words.items() if value]:
            raise UserError(f"{given[0]}: nothing reads it without --suite")
        if len(arguments.models) > 1:
            raise UserError("name one run, or a --suite to judge several models on")
        from restomod.tools.runs import run_of, run_recipe

        run_recipe(run_of(arguments.models[0]))  # mistakes show before Composer is imported
        from restomod.eval.heldout import evaluate_run

        sys.stdout.write(evaluate_run(arguments.models[0]))
        return 0
    from restomod.eval.suite import load_suite

    suite = load_suite(arguments.suite)  # mistakes show before torch is imported
    from restomod.eval.run import Request, run_suite

    request = Request(
        arguments.models,
        suite,
        shlex.join(["restomod", *sys.argv[1:]]),
        arguments.baseline,
        arguments.seeds,
        arguments.out,
        arguments.all_checkpoints,
    )
    sys.stdout.write(run_suite(request))
    return 0


def finetune(arguments: argparse.Namespace) -> int:
    _set_up_process()
    from restomod.finetune.config import load_finetune
    from restomod.strict import split_words

    config = load_finetune(*split_words(arguments.recipe))
    from restomod.finetune.run import describe, finetune

    command = shlex.join(["restomod", "finetune", *arguments.recipe])
    with Interrupts(SAVES).listening() as interrupts:
        scores = finetune(config, interrupts, command)
    sys.stdout.write(describe(config, scores))
    return 0


def average(arguments: argparse.Namespace) -> int:
    _set_up_process()
    from restomod.tools.runs import run_recipe

    run, recipe = arguments.run, run_recipe(arguments.run)
    from restomod.tools.average import AVERAGED, average_run

    best = 0 if arguments.last else arguments.best or 3
    out = arguments.out or run / AVERAGED
    done = average_run(run, recipe, out, last=arguments.last or 0, best_count=best)
    sys.stdout.write(f"{done}\n")
    return 0


def export(arguments: argparse.Namespace) -> int:
    _set_up_process()
    from restomod.tools.export.export import export_run

    sys.stdout.write(
        export_run(arguments.run, arguments.out, arguments.step, arguments.onnx, arguments.card)
    )
    return 0


def embed(arguments: argparse.Namespace) -> int:
    _set_up_process()
    sys.stdout.write(embed_command.run(arguments))
    return 0


def import_folder(arguments: argparse.Namespace) -> int:
    _set_up_process()
    options = {name: getattr(arguments, name) for name in ("out", "config", "tokenizer")}
    if not arguments.source.exists():
        raise UserError(f"{arguments.source}: no such file or folder{within(arguments.source)}")
    if not arguments.source.is_file():
        if given := [name for name, value in options.items() if value]:
            raise UserError(f"--{given[0]}: nothing reads it without a checkpoint, one file")
        from restomod.tools.convert import describe_import

        sys.stdout.write(describe_import(arguments.source))
        return 0
    if not arguments.out:
        raise UserError(f"{arguments.source}: name the transformers folder to write: --out FOLDER")
    from restomod.tools.convert import import_checkpoint

    sys.stdout.write(import_checkpoint(arguments.source, **options))
    return 0


def tile(arguments: argparse.Namespace) -> int:
    _set_up_process()
    from restomod.tools.convert import tile_model

    sizes = (arguments.layers, arguments.hidden_size, arguments.intermediate_size)
    sys.stdout.write(tile_model(arguments.source, arguments.out, *sizes))
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    adopt_launcher(os.environ)
    _set_up_process()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    recipe, problem = None, ""
    try:
        if arguments.recipe:
            node_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            recipe = read_recipe(arguments.recipe, world_size, node_ranks)
    except UserError as error:
        if rank == 0:
            raise
        problem = str(error)  # which rank 0 tells, with the node's name
    from restomod.tools.doctor.doctor import doctor

    def write(text: str) -> None:  # at once: a launcher kills rank 0 when another rank has ended
        sys.stdout.write(text)
        sys.stdout.flush()

    code, hangs = doctor(recipe, problem, arguments.timeout, write, arguments.json)
    if hangs:
        os._exit(code)  # a thread that waits for a device or the network would keep us
    return code


def top(arguments: argparse.Namespace) -> int:
    from restomod.tools.top import top

    top(arguments.run, arguments.once, arguments.every)
    return 0


def sweep(arguments: argparse.Namespace) -> int:
    _set_up_process()
    from restomod.launch.profile import default_profile, load_profile
    from restomod.sweep.jobs import Jobs, LocalJobs, Setting
    from restomod.sweep.run import run_sweep
    from restomod.sweep.slurm import SlurmJobs

    here, count = arguments.on == "local", arguments.jobs
    for option in ("sbatch", "profile"):
        if here and getattr(arguments, option):
            raise UserError(f"--{option}: nothing reads it without --on slurm")
    path = arguments.profile or default_profile("slurm")
    profile = load_profile(path) if path and not here else None

    def jobs(setting: Setting) -> Jobs:
        if here:
            return LocalJobs(count, setting.environment)
        return SlurmJobs(setting, profile, shlex.split(arguments.sbatch), count)

    return run_sweep(arguments.file, count, arguments.json, sys.stdout.write, jobs, here)


def launch(arguments: argparse.Namespace) -> int:
    from restomod.launch.submit import how_to, launch, plan_job, render

    job = plan_job(
        arguments.recipe,
        arguments.on,
        arguments.profile,
        arguments.nodes,
        arguments.gpus_per_node,
        arguments.procs_per_node,
    )
    if arguments.dry_run:
        sys.stdout.write(render(job))
        sys.stderr.write(how_to(job))
    else:
        sys.stdout.write(launch(job))
    return 0


def report(arguments: argparse.Namespace) -> int:
    from restomod.tools.report.report import report

    sys.stdout.write(f"{report(arguments.run, arguments.out)}\n")
    return 0
