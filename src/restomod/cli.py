"""The command line: `train.py`, and `restomod COMMAND`. Heavy imports wait until a command needs
them."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from restomod.errors import UserError
from restomod.interrupts import SAVES, Interrupts, Stopped
from restomod.train.launch import adopt_launcher, leave_code
from restomod.train.stopping import REQUEUE_CODE
from restomod.vectors import command as embed_command

if TYPE_CHECKING:
    from restomod.config import Recipe

STARTED = time.monotonic()
NODE_RANKS = 8
"""Ranks of a node where nobody says how many: GPUs of a usual server."""
RECIPE_HELP = "recipe files (later ones win) and key=value overrides"


def train_main(arguments: Sequence[str]) -> int:
    """Run `train.py`; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a recipe, or continue the run that it names.",
        epilog="Exit codes: 0 complete; 2 a mistake in recipe, data or command; 1 a bug of ours.",
    )
    parser.add_argument("recipe", nargs="+", metavar="RECIPE.yaml|key=value", help=RECIPE_HELP)
    parser.add_argument("--phase", metavar="NAME", help="train one phase alone, with --from")
    parser.add_argument(
        "--from", dest="checkpoint", metavar="CHECKPOINT", help="checkpoint of another run"
    )
    parser.add_argument(
        "--fork", metavar="RUN@STEP", help="begin a new run from a checkpoint, with this recipe"
    )
    parsed = parser.parse_intermixed_args(arguments)
    begins = {key: getattr(parsed, key) for key in ("phase", "checkpoint", "fork")}
    words = [f"start.{key}={json.dumps(value)}" for key, value in begins.items() if value]
    return leave_code(_guarded(lambda: _train([*parsed.recipe, *words])), os.environ)


def main() -> int:
    """Run `restomod COMMAND`; return the exit code."""
    parser = argparse.ArgumentParser(prog="restomod", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(handler=run)
        return sub

    prepare = command("prepare", _prepare, "make shards and a tokenizer out of raw text")
    prepare.add_argument("recipe", nargs="+", metavar="RECIPE.yaml|key=value", help=RECIPE_HELP)
    prepare.add_argument(
        "--tokenizer-only", action="store_true", help="end when the tokenizer is there"
    )
    prepare.add_argument(
        "--refresh", action="store_true", help="begin anew if the recipe or its input changed"
    )

    plan = command("plan", _plan, "check a recipe and print what it amounts to, without training")
    plan.add_argument("recipe", nargs="+", metavar="RECIPE.yaml|key=value", help=RECIPE_HELP)
    plan.add_argument("--world-size", type=_positive, help="ranks to plan for; 1 by default")
    plan.add_argument(
        "--gpus", type=_positive, metavar="N", help="the same, one GPU each (h100 without --gpu)"
    )
    plan.add_argument(
        "--gpu", default="", metavar="NAME", help="h100, a100, ...: what memory, hours and cost are"
    )
    plan.add_argument(
        "--mfu", type=float, default=0.4, help="share of the GPUs' peak reached; 0.4 by default"
    )
    plan.add_argument(
        "--price", type=float, default=2.5, help="dollars for a GPU hour; 2.5 by default"
    )
    plan.add_argument(
        "--vocabulary",
        type=_positive,
        metavar="N",
        help="assumed where the recipe's tokenizer is not here; 50368 by default",
    )
    plan.add_argument("--html", type=Path, metavar="FILE", help="write the plan as a page, too")
    plan.add_argument(
        "--ranks-per-node",
        type=_positive,
        help=f"of which a node runs as many; {NODE_RANKS} at most by default",
    )

    inspect = command(
        "inspect",
        _inspect,
        "print what each step of a recipe trains on, without training, or what a data set holds",
    )
    inspect.add_argument(
        "recipe",
        nargs="+",
        metavar="RECIPE.yaml|key=value|FOLDER",
        help=f"{RECIPE_HELP}; or one MDS folder, local or remote",
    )
    inspect.add_argument(
        "--steps", default="0:10", metavar="FROM:TO", help="steps, the last excluded"
    )
    inspect.add_argument("--world-size", type=_positive, default=1, help="ranks to imitate")
    inspect.add_argument("--workers", type=int, default=0, help="loader processes of each rank")
    inspect.add_argument("--tokenizer", default="", help="the tokenizer of a FOLDER's ids or text")
    inspect.add_argument("--json", action="store_true", help="one JSON object a line")

    evaluate = command(
        "eval", _eval, "evaluate a run on its held-out data, or models on the tasks of a suite"
    )
    evaluate.add_argument(
        "models",
        nargs="+",
        type=Path,
        metavar="RUN|CHECKPOINT|FOLDER",
        help="a run; with --suite models of any kind",
    )
    evaluate.add_argument(
        "--suite", default="", metavar="NAME|FILE.yaml", help="offline, beir, ...: docs/evaluate.md"
    )
    evaluate.add_argument(
        "--baseline",
        default="",
        metavar="MODEL|NAME",
        help="what differences are taken from: another model, or random (by default), bag, tfidf, "
        "minilm",
    )
    evaluate.add_argument(
        "--seeds", type=_positive, default=0, help="of random initialisation and tuning"
    )
    evaluate.add_argument("--out", type=Path, help="RUN/evaluations/SUITE by default")
    evaluate.add_argument(
        "--all-checkpoints", action="store_true", help="every checkpoint of a run: a leaderboard"
    )

    finetune = command(
        "finetune", _finetune, "fine-tune a model on labelled data; the same command goes on"
    )
    finetune.add_argument("recipe", nargs="+", metavar="CONFIG.yaml|key=value", help=RECIPE_HELP)

    average = command("average", _average, "average the weights of a run's checkpoints")
    average.add_argument("run", type=Path, metavar="RUN", help="run folder")
    which = average.add_mutually_exclusive_group()
    which.add_argument("--last", type=_positive, metavar="K", help="the newest K")
    which.add_argument(
        "--best",
        type=_positive,
        metavar="K",
        help="the K of the last phase with the lowest held-out loss; 3 by default",
    )
    average.add_argument("--out", type=Path, help="folder to write; RUN/averaged by default")

    export = command("export", _export, "write a run's model as a transformers folder")
    export.add_argument(
        "run", type=Path, metavar="RUN|CHECKPOINT|AVERAGE", help="a run's newest is taken"
    )
    export.add_argument("--step", type=_positive, help="the run's checkpoint at this step")
    export.add_argument("--out", type=Path, help="folder to write; RUN/exported by default")
    export.add_argument("--onnx", action="store_true", help="write onnx/model.onnx, too")
    export.add_argument(
        "card", nargs="*", metavar="card.KEY=VALUE", help="of the model card, such as card.licence"
    )

    embed = command("embed", _embed, "write the vectors of many texts: Parquet or JSON lines in")
    embed_command.add_arguments(embed)

    imported = command(
        "import",
        _import,
        "check a transformers folder; print how a recipe starts from it",
    )
    imported.add_argument("folder", type=Path, metavar="FOLDER")

    tile = command("tile", _tile, "start a larger model from a smaller one, by centre tiling")
    tile.add_argument("source", type=Path, metavar="RUN|CHECKPOINT|FOLDER", help="smaller model")
    tile.add_argument("--out", type=Path, required=True, help="transformers folder to write")
    for size in ("layers", "hidden-size", "intermediate-size"):
        tile.add_argument(f"--{size}", type=_positive, help="the source's by default")

    doctor = command(
        "doctor", _doctor, "check devices, network, disks and data before a run, on all its nodes"
    )
    doctor.add_argument("recipe", nargs="*", metavar="RECIPE.yaml|key=value", help=RECIPE_HELP)
    doctor.add_argument(
        "--timeout",
        type=_positive,
        default=60,
        metavar="SECONDS",
        help="time that each rank has to answer, at each stage; 60 by default",
    )
    doctor.add_argument("--json", action="store_true", help="all that was measured, as JSON")

    top = command("top", _top, "show a run on the terminal while it trains")
    top.add_argument("run", type=Path, metavar="RUN", help="run folder")
    top.add_argument("--once", action="store_true", help="one picture, then end")
    top.add_argument("--every", type=_positive, default=1, metavar="SECONDS", help="1 by default")
    sweep = command("sweep", _sweep, "try a recipe's values: a file in W&B's format, without W&B")
    sweep.add_argument("file", type=Path, metavar="FILE", help="sweep file (docs/sweep.md)")
    sweep.add_argument("--on", choices=("local", "slurm"), default="local", help="local by default")
    sweep.add_argument("--jobs", type=_positive, default=1, help="trials at a time; 1 by default")
    sweep.add_argument(
        "--profile",
        default="",
        metavar="FILE",
        help="the cluster's facts, as `restomod launch` takes them; launchers/profiles/slurm.yaml "
        "if it is there",
    )
    sweep.add_argument(
        "--sbatch", default="", metavar="OPTIONS", help="sbatch's, as --sbatch='--gres=gpu:1'"
    )
    sweep.add_argument("--json", action="store_true", help="the trials as one JSON object")
    launch = command("launch", _launch, "run a recipe on the nodes of a cluster")
    launch.add_argument("recipe", nargs="+", metavar="RECIPE.yaml|key=value", help=RECIPE_HELP)
    launch.add_argument(
        "--on", required=True, choices=("slurm", "kubernetes", "skypilot", "torchrun")
    )
    launch.add_argument("--nodes", type=_positive, default=1)
    launch.add_argument("--gpus-per-node", type=int, required=True, help="0: ranks run on CPUs")
    launch.add_argument(
        "--procs-per-node", type=_positive, metavar="P", help="ranks of a node; one per GPU"
    )
    launch.add_argument(
        "--profile",
        default="",
        metavar="FILE",
        help="facts of the cluster; launchers/profiles/SYSTEM.yaml if it is there",
    )
    launch.add_argument("--dry-run", action="store_true", help="show what would be submitted")

    report = command(
        "report", _report, "write the page of a run, of several side by side, or of a sweep"
    )
    report.add_argument(
        "run", nargs="+", type=Path, metavar="RUN", help="run folders, or one sweep's folder"
    )
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="page to write; beside what it shows by default"
    )

    arguments, rest = parser.parse_known_args()
    words = next((name for name in ("recipe", "card") if hasattr(arguments, name)), "")
    if rest and (not words or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    elif rest:
        getattr(arguments, words).extend(rest)  # overrides that follow an option
    return _guarded(lambda: arguments.handler(arguments))


def _guarded(run: Callable[[], int]) -> int:
    """Turn a user's mistake into exit code 2 and one message, of rank 0 unless another is alone."""
    try:
        return run()
    except UserError as error:
        if error.alone or os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"error: {error}\n")
        return 2
    except Stopped as stop:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        sys.stderr.write(f"{stop}; the same command goes on:\n  {command}\n")
        return 130 if stop.reason == "SIGINT" else REQUEUE_CODE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


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


def _read(words: Sequence[str], world_size: int, node_ranks: int) -> Recipe:
    """Load and check the recipe that the command line describes, for `world_size` ranks of which a
    node runs `node_ranks`."""
    from restomod.recipe import check_world, load_recipe
    from restomod.strict import split_words

    recipe = load_recipe(*split_words(words))
    check_world(recipe, world_size, node_ranks)
    return recipe


def _train(words: Sequence[str]) -> int:
    adopt_launcher(os.environ)
    _set_up_process()
    from restomod.train.manifest import newest_step
    from restomod.train.stopping import (
        Stopper,
        StopRequested,
        exit_code,
        is_lost_rank,
        leave_requeue,
    )
    from restomod.units import parse_duration

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    with Stopper().listening() as stopper:
        recipe = _read(words, world_size, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        try:
            limit_s = parse_duration(recipe.stop_after)
            stopper.watch(recipe.run_folder, STARTED + limit_s if limit_s else float("inf"))
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
            if os.environ.get("LOCAL_RANK", "0") == "0":
                step = stop.step or newest_step(recipe.run_folder)  # it had not gone on yet
                leave_requeue(recipe.run_folder, stop.reason, step)
            return exit_code()
        except Exception as error:
            if is_lost_rank(error) and (code := stopper.others_code()):
                return code  # which tells why
            stopper.fail(2 if isinstance(error, UserError) else 1)
            raise
        finally:
            stopper.ignore()
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    _set_up_process()
    from restomod.prepare.config import load_preparation
    from restomod.strict import split_words

    recipe = load_preparation(*split_words(arguments.recipe))
    from restomod.prepare.pipeline import prepare

    sys.stdout.write(
        prepare(recipe, tokenizer_only=arguments.tokenizer_only, refresh=arguments.refresh)
    )
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from restomod.recipe import load_recipe
    from restomod.strict import split_words
    from restomod.tools.plan import make_plan
    from restomod.tools.plan_parts import target

    aim = target(arguments, NODE_RANKS)
    plan = make_plan(load_recipe(*split_words(arguments.recipe)), aim)
    sys.stdout.write(plan.text())
    if arguments.html:
        from restomod.tools.plan_page import write_page

        write_page(plan, arguments.html)
        sys.stdout.write(f"{arguments.html}\n")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    folder = arguments.recipe[0]
    if len(arguments.recipe) == 1 and ("://" in folder or Path(folder).is_dir()):
        from restomod.tools.folder import describe_folder

        sys.stdout.write(describe_folder(folder, arguments.tokenizer, arguments.json))
        return 0
    from restomod.tools.inspect import inspect_steps

    first, colon, last = arguments.steps.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UserError(f"--steps {arguments.steps}: write FROM:TO, for instance 0:20")
    ranks = arguments.world_size
    words = [*arguments.recipe, f"data.workers={arguments.workers}"]
    recipe = _read(words, ranks, ranks)
    for line in inspect_steps(recipe, int(first), int(last), ranks, arguments.json):
        sys.stdout.write(line + "\n")
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    _set_up_process()
    if not arguments.suite:
        words = {"--baseline": arguments.baseline, "--seeds": arguments.seeds}
        words |= {"--out": arguments.out, "--all-checkpoints": arguments.all_checkpoints}
        if given := [word for word, value in words.items() if value]:
            raise UserError(f"{given[0]}: nothing reads it without --suite")
        if len(arguments.models) > 1:
            raise UserError("name one run, or a --suite to judge several models on")
        from restomod.eval.heldout import evaluate_run

        sys.stdout.write(evaluate_run(arguments.models[0]))
        return 0
    from restomod.eval.suite import load_suite

    suite = load_suite(arguments.suite)  # mistakes show before torch is imported
    from restomod.eval.run import Request, run_suite
    from restomod.interrupts import Stopped
    from restomod.train.stopping import REQUEUE_CODE

    request = Request(
        arguments.models,
        suite,
        shlex.join(["restomod", *sys.argv[1:]]),
        arguments.baseline,
        arguments.seeds,
        arguments.out,
        arguments.all_checkpoints,
    )
    try:
        sys.stdout.write(run_suite(request))
    except Stopped as stop:
        sys.stderr.write(f"{stop}; the same command goes on:\n  {request.command}\n")
        return 130 if stop.reason == "SIGINT" else REQUEUE_CODE
    return 0


def _finetune(arguments: argparse.Namespace) -> int:
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


def _average(arguments: argparse.Namespace) -> int:
    _set_up_process()
    from restomod.tools.runs import run_recipe

    run, recipe = arguments.run, run_recipe(arguments.run)
    from restomod.tools.average import AVERAGED, average_run

    best = 0 if arguments.last else arguments.best or 3
    out = arguments.out or run / AVERAGED
    done = average_run(run, recipe, out, last=arguments.last or 0, best_count=best)
    sys.stdout.write(f"{done}\n")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    _set_up_process()
    from restomod.tools.export import export_run

    sys.stdout.write(
        export_run(arguments.run, arguments.out, arguments.step, arguments.onnx, arguments.card)
    )
    return 0


def _embed(arguments: argparse.Namespace) -> int:
    _set_up_process()
    sys.stdout.write(embed_command.run(arguments))
    return 0


def _import(arguments: argparse.Namespace) -> int:
    _set_up_process()
    from restomod.tools.convert import describe_import

    sys.stdout.write(describe_import(arguments.folder))
    return 0


def _tile(arguments: argparse.Namespace) -> int:
    _set_up_process()
    from restomod.tools.convert import tile_model

    sizes = (arguments.layers, arguments.hidden_size, arguments.intermediate_size)
    sys.stdout.write(tile_model(arguments.source, arguments.out, *sizes))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    adopt_launcher(os.environ)
    _set_up_process()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    recipe, problem = None, ""
    try:
        if arguments.recipe:
            node_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            recipe = _read(arguments.recipe, world_size, node_ranks)
    except UserError as error:
        if rank == 0:
            raise
        problem = str(error)  # which rank 0 tells, with the node's name
    from restomod.tools.doctor import doctor

    def write(text: str) -> None:  # at once: a launcher kills rank 0 when another rank has ended
        sys.stdout.write(text)
        sys.stdout.flush()

    code, hangs = doctor(recipe, problem, arguments.timeout, write, arguments.json)
    if hangs:
        os._exit(code)  # a thread that waits for a device or the network would keep us
    return code


def _top(arguments: argparse.Namespace) -> int:
    from restomod.tools.top import top

    top(arguments.run, arguments.once, arguments.every)
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
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


def _launch(arguments: argparse.Namespace) -> int:
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


def _report(arguments: argparse.Namespace) -> int:
    from restomod.tools.reports import report

    sys.stdout.write(f"{report(arguments.run, arguments.out)}\n")
    return 0
