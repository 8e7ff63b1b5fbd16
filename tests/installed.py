"""Distributions laid out as pip does it, for tests of what is harvested from them."""

from __future__ import annotations

from pathlib import Path

SENTENCE = "A sentence about {0} that goes on for a while, number {1} of its kind.\n"
VERBS = ("measures", "converts", "removes", "compares", "collects", "repeats", "divides", "prints")
THINGS = ("lengths", "tables", "folders", "colours", "vectors", "sockets", "mails", "clocks")


def install(
    site: Path, name: str, files: dict[str, str], description: str = "", version: str = "1.0"
) -> None:
    """Lay out one distribution."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    files = {
        **files,
        f"{info.name}/METADATA": (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n{description}\n"
        ),
    }
    for file, content in files.items():
        path = site / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    record = "".join(f"{file},,{len(content.encode())}\n" for file, content in files.items())
    (info / "RECORD").write_text(record)


def described(name: str, functions: int) -> str:
    """Return a module of functions that a sentence each tells apart."""
    code = f'"""{name.title()} keeps what belongs to {name} in one place for all who need it."""\n'
    for n in range(functions):
        verb, thing = VERBS[n % 8], THINGS[(n // 8) % 8]
        code += (
            f"\n\ndef {verb}_{thing}_{n}(values_of_{name}, limit_{n}):\n"
            f'    """The one of {name} that {verb} the {thing} of number {n} below a limit."""\n'
            f"    kept_{thing}_{n} = [value for value in values_of_{name} if value < limit_{n}]\n"
            f"    {verb}_of_{name}_{n} = sum(kept_{thing}_{n}) * {n}\n"
            f"    return {verb}_of_{name}_{n}, {verb}_{thing}_{n}.__name__\n"
        )
    return code


def readme(name: str) -> str:
    """Return a description with sections."""
    sections = [
        ("Installation", "install"),
        (f"How {name} stores vectors", "vectors"),
        (f"Reading folders with {name}", "folders"),
    ]
    text = f"# {name}\n\n"
    for title, about in sections:
        body = "".join(SENTENCE.format(f"{about} of {name}", n) for n in range(5))
        text += f"## {title}\n\n{body}\n"
    return text
