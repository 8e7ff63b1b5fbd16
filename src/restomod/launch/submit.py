"""`restomod launch`: checks a recipe, renders what a scheduler takes, shows it or submits it.

In: recipe words, a system, a profile. Out: what was rendered (`--dry-run`), or the job, and how to
follow and stop it. `commands.py` is the caller.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from restomod.errors import UserError
from restomod.launch.profile import default_profile, load_profile
from restomod.launch.record import describe_commit
from restomod.launch.render import Job, render
from restomod.launch.words import check_words, label
from restomod.recipe import check_world, load_recipe
from restomod.strict import split_words

PROGRAMS = {"slurm": "sbatch", "kubernetes": "kubectl", "skypilot": "sky", "torchrun": "bash"}


def plan_job(
    words: Sequence[str], system: str, profile: str, nodes: int, gpus: int, ranks: int | None
) -> Job:
    """Check everything that can be checked before a job is rendered.

    `gpus` and `ranks` are those of a node; a rank per GPU by default. Raises UserError.
    """
    check_words(words)
    recipe = load_recipe(*split_words(words))
    ranks = ranks or gpus
    if not ranks:
        raise UserError("--gpus-per-node 0: say with --procs-per-node how many ranks a node runs")
    check_world(recipe, nodes * ranks, ranks)
    facts = load_profile(profile or default_profile(system))
    return Job(recipe, list(words), facts, system, nodes, gpus, ranks, describe_commit(Path.cwd()))


def launch(job: Job) -> str:
    """Write the script or manifest into the run folder and submit it; return how to follow and stop
    the run. With torchrun, become the script, which runs to the run's end."""
    program = PROGRAMS[job.system]
    text = render(job)
    if shutil.which(program) is None:
        raise UserError(f"{program} is not here; --dry-run shows what it would be given")
    file = job.recipe.run_folder / "launch" / ("job.yaml" if job.in_yaml else "job.sh")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    if job.system == "slurm" and not job.profile.slurm.output:
        _make_logs(job)
    if job.system == "torchrun":
        sys.stderr.write(how_to(job))
        sys.stderr.flush()
        os.execvp(program, [program, str(file)])
    command = _command(job, file)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{shlex.join(command)}: {(done.stderr or done.stdout).strip()}")
    found = re.match(r"\d+", done.stdout) if job.system == "slurm" else None
    return how_to(job, found[0] if found else "JOB")


def _make_logs(job: Job) -> None:
    """Make the folder of the job's log, as nodes see it: Slurm makes none, and ends a job whose log
    cannot be opened."""
    there = job.run_folder if Path(job.workdir).is_dir() else job.recipe.run_folder
    try:
        (there / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{there / 'logs'}: cannot be made: {error.strerror}; the job's log goes there, unless "
            "the profile's slurm.output names another place"
        ) from error


def how_to(job: Job, number: str = "JOB") -> str:
    """Return the commands that follow and stop a job."""
    name, space = label(job.recipe.run_name), job.profile.kubernetes.namespace
    kind = job.profile.kubernetes.kind
    folder = shlex.quote(str(job.run_folder))
    output = job.profile.slurm.output or f"{job.run_folder}/logs/slurm-%j.log"
    ways = {
        "slurm": [
            f"follow:  tail -F {shlex.quote(output.replace('%j', number))}",
            f"state:   squeue -j {number}; scontrol show job {number}",
            f"save and go on later:  scancel --signal=USR1 {number}",
            f"stop:    scancel {number}  (ranks have Slurm's KillWait to save)",
            f"         or touch {folder}/STOP, which waits for the save",
        ],
        "kubernetes": [
            f"follow:  kubectl -n {space} logs -f -l restomod.run={name} --prefix",
            f"state:   kubectl -n {space} get {kind}/{name}",
            f"stop:    kubectl -n {space} delete -f {shlex.quote(str(job.recipe.run_folder))}"
            f"/launch/job.yaml  (ranks have {job.grace_s} s to save)",
        ],
        "skypilot": [
            f"follow:  sky jobs logs -n {name}",
            "state:   sky jobs queue",
            f"stop:    sky jobs cancel -n {name}",
        ],
        "torchrun": [
            f"follow:  tail -F {folder}/logs/node-*/*/attempt_*/*/stderr.log",
            f"stop:    Ctrl-C, or touch {folder}/STOP",
        ],
    }
    if job.in_yaml and not (job.profile.mounts or job.recipe.store):
        ways[job.system].append(
            "warning: the profile has no mounts and the recipe no store: checkpoints go with the "
            "machine that wrote them"
        )
    return "\n".join(ways[job.system]) + "\n"


def _command(job: Job, file: Path) -> list[str]:
    if job.system == "slurm":
        return ["sbatch", "--parsable", str(file)]
    if job.system == "kubernetes":
        return ["kubectl", "create", "-f", str(file)]
    secrets = [word for name in job.profile.secrets for word in ("--secret", name)]
    return ["sky", "jobs", "launch", "--yes", "--detach-run", *secrets, str(file)]
