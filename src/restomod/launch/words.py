"""What may stand in a script or a manifest, and how it is quoted.

Text of a user (run names, paths, overrides, facts of a cluster) reaches a shell, an #SBATCH line or
YAML only through this module: it is quoted, or refused where it cannot be. `render.py` calls it for
every value of a template, so that a template cannot forget to.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from restomod.errors import UserError

SBATCH = re.compile(r"[A-Za-z0-9_./:,@%+=&|*()\[\]-]+")
"""Values of #SBATCH lines, which Slurm reads by rules of its own: what needs no quotes."""
OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
"""Names of Kubernetes objects."""
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]*")
"""Hosts, addresses, interfaces; never an option of the command that takes them."""
IMAGE = re.compile(r"[A-Za-z0-9/][A-Za-z0-9._:/@#+-]*")
PATH = re.compile(r"[^\s:,'\"\\`$;&|<>()*?!#-][^\s:,'\"\\`$;&|<>()*?!#]*")
"""Paths of a profile: what no shell and no mount option reads otherwise."""
VOLUME = re.compile(rf"pvc:{OBJECT_NAME.pattern}|scratch:|{PATH.pattern}")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?|Ki)?")
LABEL_LENGTH = 40
"""A pod's host name has 63 letters, of which its number and a Kubeflow role take some."""

_SECRET_NAME = re.compile(
    r"(?i)SECRET|PASSW|PASSPHRASE|CREDENTIAL|COOKIE|(^|_)(API_?KEYS?|KEY(_ID)?|TOKENS?|AUTH|JWT|PAT|SAS|PWD)$"
)
_USER_IN_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s]*:[^/\s]*@")


class Quoted(str):
    """Text that is quoted for where it goes."""


def is_secret(name: str, value: str = "") -> bool:
    """Return whether a variable's name, or a password in a URL of its value, says that it must not
    be written down."""
    folder = name in ("PWD", "OLDPWD")
    return not folder and bool(_SECRET_NAME.search(name) or _USER_IN_URL.search(value))


def check_words(given: Sequence[str]) -> None:
    """Raise UserError for a recipe's path or override that no script can carry."""
    for word in given:
        if not word or not word.isprintable():
            raise UserError(f"{word!r}: holds what cannot be printed, which no script carries")
        if word.startswith("-"):
            raise UserError(f"{word!r}: would be read as an option")
        if is_secret("", word):
            raise UserError(
                f"{word.partition('=')[0]}: holds a password, which would be written into a "
                "script; give it as a variable that the profile's `secrets` names"
            )


def words(value: Any) -> Quoted:
    """Quote a value, or each of a list, for a POSIX shell."""
    parts = value if isinstance(value, list) else [value]
    return Quoted(" ".join(shlex.quote(_text(part)) for part in parts))


def sbatch(value: Any) -> Quoted:
    """Return a value for an #SBATCH line; UserError if it would need quotes."""
    text = _text(value)
    if not SBATCH.fullmatch(text):
        wrong = " and ".join(repr(letter) for letter in sorted(set(SBATCH.sub("", text))))
        raise UserError(
            f"{text!r}: holds {wrong or 'nothing'}, which an #SBATCH line cannot carry; choose "
            "names and folders without"
        )
    return Quoted(text)


def yaml(value: Any) -> Quoted:
    """Write a value as JSON, which is YAML, on one line."""
    if isinstance(value, bool | int | float) or value is None:
        return Quoted(json.dumps(value))
    if isinstance(value, list | tuple):
        return Quoted("[" + ", ".join(yaml(item) for item in value) + "]")
    return Quoted(json.dumps(_text(value), ensure_ascii=False))


def pod(value: Any) -> Quoted:
    """Write text of a pod's command, arguments or variables, in which Kubernetes would put the
    value of a variable for $(NAME)."""
    return yaml(_text(value).replace("$", "$$"))


def label(run_name: str) -> str:
    """Return a run's name as DNS writes names; one that it has to change ends in a hash of its
    own."""
    name = re.sub(r"[^a-z0-9-]+", "-", run_name.lower()).strip("-")[:LABEL_LENGTH].strip("-")
    # A service's name begins with a letter.
    if name == run_name and name[0].isalpha():
        return name
    return f"r-{name[:24].strip('-')}-{hashlib.sha256(run_name.encode()).hexdigest()[:8]}"


def unprintable(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, text) of all text in a dataclass that is not printable: new lines, for one."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for name, item in value.items():
            yield from unprintable(item, f"{key}.{name}" if key else str(name))
            if not str(name).isprintable():
                yield key, str(name)
    elif isinstance(value, str) and not value.isprintable():
        yield key, value


def _text(value: Any) -> str:
    text = str(value)
    if not text.isprintable():
        raise UserError(f"{text!r}: holds what cannot be printed, which no script carries")
    return text
