"""The one exception that is the user's to mend: the command line prints it and exits with code
2."""

from pathlib import Path


class UserError(Exception):
    """A mistake in a recipe, an argument or the data: the message says what, why and what to do."""

    alone = False
    """Whether the other ranks do not know of it, so that this one has to tell it."""


def within(path: Path) -> str:
    """Say where a path that is not there was looked for, unless it says so itself."""
    return "" if path.is_absolute() else f" in {Path.cwd()}"
