"""The fenced blocks of docs/*.md, and the commands in them.

A block without a language holds commands, one a line, but for a backslash at a line's end and what
follows ` #`. `title="NAME"` makes a block a file of that name. tests/unit/test_doc_commands.py
checks all of them; tests/systems/test_doc_commands.py runs the commands of the pages in RUN.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
RUN = (
    "quickstart",
    "recipe",
    "continue",
    "faults",
    "migrate",
    "plan",
    "watch",
    "distributed",
    "launch",
)
"""Pages whose commands one test runs, in this order, in one folder."""
ELSEWHERE = {"use": "tests/systems/test_use.py", "evaluate": "tests/systems/test_suites.py"}
"""Pages whose commands, or the like of them, another test runs."""
NOT_RUN = {
    ".venv/mutation/bin/mutmut": "tests/long/mutation.py does",
    "composer -n": "tests/systems/test_launchers.py does",
    "make ": "people and .ci/run do",
    "pip install": "the environment has it",
    "python -m pytest tests/gpu": "needs a GPU",
    "make ablations": "trains for half an hour; tests/systems/test_ablations.py has two arms",
    "python -m benchmarks.ablations": "the same",
    "python -m benchmarks": "tests/systems/test_benchmarks.py does, small and short",
    "python tests/chaos.py": "tests/systems/test_chaos.py does, on less",
    "python train.py my.yaml --fork runs/my@12000": "test_phases.py forks, from fewer steps",
    "python train.py my.yaml --phase decay": "tests/integration/test_phases.py does, likewise",
    "python train.py yamls/recipes/": "tests/systems/test_recipes.py trains them at toy width",
    "ray ": "tests/systems/test_ray.py has a cluster",
    "restomod doctor yamls/recipes/": "wants the recipe's data",
    "restomod finetune yamls/finetune/classification.yaml": "tests/integration/test_readme.py does",
    "restomod launch yamls/recipes/modernbert-base.yaml": "test_recipes.py plans what heads launch",
    "restomod plan yamls/recipes/": "tests/unit/tools/test_shipped_recipes.py does",
    "restomod prepare big": "three sizes; tests/systems/test_ray.py and test_preparations.py do",
    "restomod prepare yamls/data/": "tests/systems/test_preparations.py does",
    "restomod report runs/lr-batch": "tests/systems/test_sweep.py does",
    "restomod sweep": "tests/systems/test_sweep.py and test_sweep_on_slurm.py do",
    "srun ": "tests/systems/test_slurm.py does",
    "torchrun ": "tests/systems/test_launchers.py does",
    "wandb ": "needs W&B's server",
}
"""How commands begin that are not run as they stand, and why."""
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    title: str
    body: str


@dataclass(frozen=True)
class Command:
    """A command of a page, as a shell would take it."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its words, without variables that stand before it."""
        words = shlex.split(self.text)
        while words and ASSIGNMENT.fullmatch(words[0]):
            words = words[1:]
        return words


def blocks(page: str = "*") -> list[Block]:
    """Return the blocks of a page, or of all pages."""
    return [
        Block(path.stem, language, title, body)
        for path in sorted(DOCS.glob(f"{page}.md"))
        for language, title, body in re.findall(
            r'^```(\w*)(?: title="(\S+)")?\n(.*?)^```$', path.read_text(), re.M | re.S
        )
    ]


def commands(page: str = "*") -> list[Command]:
    """Return the commands of a page, or of all pages, in order."""
    found = []
    for block in blocks(page):
        if block.language:
            continue
        for line in block.body.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s#\s", f" {line} ")[0].split(" && "):
                if part.strip():
                    found.append(Command(block.page, " ".join(part.split())))
    return found


def reason_not_to_run(command: Command) -> str:
    """Return why a command is not run by the test of the pages in RUN; empty if it is."""
    begins = (reason for start, reason in NOT_RUN.items() if command.text.startswith(start))
    return next(begins, ELSEWHERE.get(command.page, ""))
