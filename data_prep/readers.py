"""Read files of documents and say what is in them, to try a corpus out before hours of work are
spent on it:

    python data_prep/readers.py corpus/*.jsonl.zst --text-field content

In: files or folders, as `restomod.prepare.files` finds them. Out: the tally as JSON on standard
output, the first problems on standard error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import stage

from restomod.prepare.readers import Tally, read_documents, require_documents


def main(argv: Sequence[str] | None = None) -> int:
    """Read the files and print the tally as JSON."""
    parser = argparse.ArgumentParser(
        prog="readers.py", description="Read files of documents and say what is in them."
    )
    parser.add_argument("input", nargs="+", help="files or folders")
    parser.add_argument("--text-field", default="text", help="field or column with the text")

    def work(arguments: argparse.Namespace) -> None:
        tally = Tally()
        documents = read_documents(arguments.input, arguments.text_field, tally)
        for _ in stage.progress(documents, unit=" documents"):
            pass
        stage.report_problems(tally.problems)
        print(json.dumps(tally.as_dict(), indent=1))
        require_documents(tally, arguments.input)

    return stage.run(work, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
