"""The command line: what words `train.py` and `restomod COMMAND` take, and how mistakes are told.

`commands.py` does what they ask for.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from restomod import commands
from restomod.errors import UserError
from restomod.interrupts import Stopped
from restomod.train.faults.stopping import REQUEUE_CODE
from restomod.train.launch import leave_code, leave_message
from restomod.units import positive
from restomod.vectors import command as embed_command

RECIPE_HELP = "recipe files (later ones win) and key=value overrides"


def train_main(arguments: Sequence[str]) -> int:
    """Run `train.py`; return the exit code."""
    words = parse_train(arguments)
    return leave_code(_guarded(lambda: commands.train(words)), os.environ)


def parse_train(arguments: Sequence[str]) -> list[str]:
    """Return the recipe files and overrides that the words after `train.py` make; argparse ends the
    process for words that it does not take."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a recipe, or continue the run that it names.",
        epilog="Exit codes: 0 complete; 2 a mistake in recipe, data or command; 75 saved, and the "
        "same command goes on; 130 a second Ctrl-C, nothing saved; 1 a bug of ours.",
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
    return [*parsed.recipe, *words]


def main() -> int:
    """Run `restomod COMMAND`; return the exit code."""
    arguments = parse_command(sys.argv[1:])
    return _guarded(lambda: arguments.handler(arguments))


def parse_command(words: Sequence[str]) -> argparse.Namespace:
    """Return the words after `restomod`, parsed, with the function that does them as `handler`;
    argparse ends the process for words that it does not take."""
    parser = argparse.ArgumentParser(
        prog="restomod",
        description="Pretrain, evaluate and export encoders of ModernBERT's kind.",
        epilog="Training: python train.py RECIPE.yaml, or torchrun --nproc-per-node N train.py "
        "RECIPE.yaml. restomod COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"restomod {version('restomod')}")
    if list(words[:1]) == ["train"]:
        parser.error(f"a recipe is trained by: python train.py {shlex.join(words[1:])}".rstrip())
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=summary, description=summary)
        sub.set_defaults(handler=run)
        return sub

    prepare = command("prepare", commands.prepare, "make shards and a tokenizer out of raw text")
    prepare.add_argument("recipe", nargs="+", metavar="RECIPE.yaml|key=value", help=RECIPE_HELP)
    prepare.add_argument(
        "--tokenizer-only", action="store_true", help="end when the tokenizer is there"
    )
    prepare.add_argument(
        "--refresh", action="store_true", help="begin anew if the recipe or its input changed"
    )

    plan = command(
        "plan", commands.plan, "check a recipe and print what it amounts to, without training"
    )
    plan.add_argument("recipe", nargs="+", metavar="RECIPE.yaml|key=value", help=RECIPE_HELP)
    plan.add_argument("--world-size", type=positive, help="ranks to plan for; 1 by default")
    plan.add_argument(
        "--gpus", type=positive, metavar="N", help="the same, one GPU each (h100 without --gpu)"
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
        type=positive,
        metavar="N",
        help="assumed where the recipe's tokenizer is not here; 50368 by default",
    )
    plan.add_argument("--html", type=Path, metavar="FILE", help="write the plan as a page, too")
    plan.add_argument(
        "--ranks-per-node",
        type=positive,
        help=f"of which a node runs as many; {commands.NODE_RANKS} at most by default",
    )

    inspect = command(
        "inspect",
        commands.inspect,
        "print what each step of a recipe trains on, without training, or what a data set holds",
    )
    inspect.add_argument(
        "recipe",
        nargs="+",
        metavar="RECIPE.yaml|key=value|FOLDER",
        help=f"{RECIPE_HELP}; or one MDS folder, local or remote",
    )
    inspect.add_argument(
        "--steps",
        default="0:10",
        metavar="FROM:TO",
        help="after step FROM up to step TO; 0:10 by default",
    )
    inspect.add_argument("--world-size", type=positive, default=1, help="ranks to imitate")
    inspect.add_argument("--workers", type=int, default=0, help="loader processes of each rank")
    inspect.add_argument("--tokenizer", default="", help="the tokenizer of a FOLDER's ids or text")
    inspect.add_argument("--json", action="store_true", help="one JSON object a line")

    evaluate = command(
        "eval",
        commands.evaluate,
        "evaluate a run on its held-out data, or models on the tasks of a suite",
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
        "--seeds", type=positive, default=0, help="of random initialisation and tuning"
    )
    evaluate.add_argument("--out", type=Path, help="RUN/evaluations/SUITE by default")
    evaluate.add_argument(
        "--all-checkpoints", action="store_true", help="every checkpoint of a run: a leaderboard"
    )

    finetune = command(
        "finetune",
        commands.finetune,
        "fine-tune a model on labelled data; the same command goes on",
    )
    finetune.add_argument("recipe", nargs="+", metavar="CONFIG.yaml|key=value", help=RECIPE_HELP)

    average = command("average", commands.average, "average the weights of a run's checkpoints")
    average.add_argument("run", type=Path, metavar="RUN", help="run folder")
    which = average.add_mutually_exclusive_group()
    which.add_argument("--last", type=positive, metavar="K", help="the newest K")
    which.add_argument(
        "--best",
        type=positive,
        metavar="K",
        help="the K of the last phase with the lowest held-out loss; 3 by default",
    )
    average.add_argument("--out", type=Path, help="folder to write; RUN/averaged by default")

    export = command("export", commands.export, "write a run's model as a transformers folder")
    export.add_argument(
        "run", type=Path, metavar="RUN|CHECKPOINT|AVERAGE", help="a run's newest is taken"
    )
    export.add_argument("--step", type=positive, help="the run's checkpoint at this step")
    export.add_argument("--out", type=Path, help="folder to write; RUN/exported by default")
    export.add_argument("--onnx", action="store_true", help="write onnx/model.onnx, too")
    export.add_argument(
        "card", nargs="*", metavar="card.KEY=VALUE", help="of the model card, such as card.licence"
    )

    embed = command(
        "embed", commands.embed, "write the vectors of many texts: Parquet or JSON lines in"
    )
    embed_command.add_arguments(embed)

    imported = command(
        "import",
        commands.import_folder,
        "check a transformers folder, or make one of AnswerDotAI/ModernBERT's checkpoints; print "
        "how a recipe starts from it",
    )
    imported.add_argument("source", type=Path, metavar="FOLDER|CHECKPOINT.pt")
    imported.add_argument("--out", type=Path, help="of a checkpoint: the folder to write")
    imported.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="of a checkpoint: the YAML that it was trained with, where it does not hold its own",
    )
    imported.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="of a checkpoint: its tokenizer, where it does not hold it",
    )

    tile = command(
        "tile", commands.tile, "start a larger model from a smaller one, by centre tiling"
    )
    tile.add_argument("source", type=Path, metavar="RUN|CHECKPOINT|FOLDER", help="smaller model")
    tile.add_argument("--out", type=Path, required=True, help="transformers folder to write")
    for size in ("layers", "hidden-size", "intermediate-size"):
        tile.add_argument(f"--{size}", type=positive, help="the source's by default")

    doctor = command(
        "doctor",
        commands.doctor,
        "check devices, network, disks and data before a run, on all its nodes",
    )
    doctor.add_argument("recipe", nargs="*", metavar="RECIPE.yaml|key=value", help=RECIPE_HELP)
    doctor.add_argument(
        "--timeout",
        type=positive,
        default=60,
        metavar="SECONDS",
        help="time that each rank has to answer, at each stage; 60 by default",
    )
    doctor.add_argument("--json", action="store_true", help="all that was measured, as JSON")

    top = command("top", commands.top, "show a run on the terminal while it trains")
    top.add_argument("run", type=Path, metavar="RUN", help="run folder")
    top.add_argument("--once", action="store_true", help="one picture, then end")
    top.add_argument("--every", type=positive, default=1, metavar="SECONDS", help="1 by default")
    sweep = command(
        "sweep", commands.sweep, "try a recipe's values: a file in W&B's format, without W&B"
    )
    sweep.add_argument("file", type=Path, metavar="FILE", help="sweep file (docs/sweep.md)")
    sweep.add_argument("--on", choices=("local", "slurm"), default="local", help="local by default")
    sweep.add_argument("--jobs", type=positive, default=1, help="trials at a time; 1 by default")
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
    launch = command("launch", commands.launch, "run a recipe on the nodes of a cluster")
    launch.add_argument("recipe", nargs="+", metavar="RECIPE.yaml|key=value", help=RECIPE_HELP)
    launch.add_argument(
        "--on", required=True, choices=("slurm", "kubernetes", "skypilot", "torchrun")
    )
    launch.add_argument("--nodes", type=positive, default=1)
    launch.add_argument("--gpus-per-node", type=int, required=True, help="0: ranks run on CPUs")
    launch.add_argument(
        "--procs-per-node", type=positive, metavar="P", help="ranks of a node; one per GPU"
    )
    launch.add_argument(
        "--profile",
        default="",
        metavar="FILE",
        help="facts of the cluster; launchers/profiles/SYSTEM.yaml if it is there",
    )
    launch.add_argument("--dry-run", action="store_true", help="show what would be submitted")

    report = command(
        "report", commands.report, "write the page of a run, of several side by side, or of a sweep"
    )
    report.add_argument(
        "run", nargs="+", type=Path, metavar="RUN", help="run folders, or one sweep's folder"
    )
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="page to write; beside what it shows by default"
    )

    arguments, rest = parser.parse_known_args(words)
    many = next((name for name in ("recipe", "card") if hasattr(arguments, name)), "")
    if rest and (not many or any(word.startswith("-") for word in rest)):
        subparsers.choices[arguments.command].error(f"unrecognized arguments: {' '.join(rest)}")
    elif rest:
        getattr(arguments, many).extend(rest)  # overrides that follow an option
    return arguments


def _guarded(run: Callable[[], int]) -> int:
    """Turn a user's mistake into exit code 2 and one message, of rank 0 unless another is alone."""
    try:
        return run()
    except UserError as error:
        if error.alone or os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"error: {error}\n")
        leave_message(f"error: {error}", os.environ)
        return 2
    except Stopped as stop:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        sys.stderr.write(f"{stop}; the same command goes on:\n  {command}\n")
        return 130 if stop.reason == "SIGINT" else REQUEUE_CODE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
