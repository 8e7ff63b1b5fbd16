"""Functions, sections and long files, taken out of their sources without what gives them away."""

import textwrap

import pytest

from restomod.eval.offline.files import MIN_CHARACTERS, long_document
from restomod.eval.offline.functions import documented_functions
from restomod.eval.offline.sections import sections

SOURCE = textwrap.dedent(
    '''
    """The module's own words."""
    import os


    class Reader(Base):
        """Reads what lies in a folder and remembers it for later."""

        @cached
        def load_file(self, path, *, again=False):
            """Read a file of the folder
            and remember what it holds.

            The rest says how load_file does it.
            """
            if again:
                return self.load_file(path)  # load_files is another one

            def inner():
                """A docstring that lies deeper."""
                return os.stat(path)

            return inner()

        def short(self):
            """Says much about what it does, but does very little."""
            return 1

        def __enter__(self):
            """Enter the folder, read it, and give the reader back."""
            self.a = 1
            self.b = 2
            return self


    def terse(x):
        """Short."""
        a = x
        b = a
        return b


    async def fetch(url): """Fetch what an address names, on this very line."""; a = 1; b = 2
    '''
).encode()


def test_a_functions_docstrings_and_its_name_are_taken_out():
    (found,) = documented_functions(SOURCE)
    assert found.name == "Reader.load_file"
    assert found.summary == "Read a file of the folder and remember what it holds."
    assert found.docstring.endswith("The rest says how load_file does it.")
    assert found.code.startswith(
        "@cached\ndef load_file(self, path, *, again=False):\n    if again"
    )
    for gone in ("remember", "The rest", "lies deeper", '"""'):
        assert gone not in found.code
    assert "load_file(" not in found.nameless
    assert "return self._(path)  # load_files is another one" in found.nameless
    assert found.nameless.replace("_(", "load_file(") == found.code


def test_a_file_that_does_not_parse_says_so():
    with pytest.raises(SyntaxError):
        documented_functions(b"def broken(:\n")


def test_sections_of_both_markups_without_their_headings():
    body = "Words about it, and more of them. " * 8
    text = textwrap.dedent(
        f"""
        Lost words before the first heading.

        # [Main guide](http://x) of `things`

        {body}
        ```
        # no heading here at all
        ```

        Rest title in letters
        =====================

        Rest title in letters
        {body}

        ## Usage

        {body}

        ## Too little said here

        Short.
        """
    )
    found = dict(sections(text))
    assert list(found) == ["Main guide of things", "Rest title in letters"]
    assert "# no heading here at all" in found["Main guide of things"]
    assert "Rest title" not in found["Rest title in letters"]
    assert "Lost" not in "".join(found.values())


def test_a_long_document_is_asked_for_by_the_longest_docstring_that_was_cut_out_of_it():
    lines = "".join(f"value_{n} = compute_something({n}) + other_thing({n})\n" for n in range(160))
    long = "Longest of all the docstrings here, which tells of one part of the file."
    source = (
        f'"""Tells of the whole file in a few words."""\n{lines}\ndef f():\n    """\n    {long}\n'
    )
    source += '    """\n    return 1\n'
    query, text = long_document(source.encode())
    assert query == long
    assert len(text) >= MIN_CHARACTERS
    assert "Longest" not in text
    assert "Tells of" not in text
    assert long_document(b"x = 1\n") is None
