# SPDX-License-Identifier: GPL-3.0-or-later
"""The numbers of README.md and docs/results.md, from the results of the other scripts.

    python -m experiments.readme            write them into both
    python -m experiments.readme --check    only say whether they are there

What stands between `<!-- NAME -->` and `<!-- end of NAME -->` is results/NAME.md, which the script
that measures writes; between `<!-- head of NAME -->` and its end, the first table of it and the
paragraph behind that. Under each stands when it was measured, and whether by other code than that
of now (stale.py). To change a number run its script, then this one.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import tyro

from experiments.common import provenance
from experiments.common.provenance import ROOT
from experiments.common.results import RESULTS, STAMP, load
from experiments.tables import script_name

DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "results.md")
BLOCK = re.compile(
    r"<!-- (?P<part>(?:head of )?(?P<name>\w+)) -->.*?<!-- end of (?P=part) -->", re.DOTALL
)
DATE = re.compile(r"^\*Measured .*\*\n", re.MULTILINE)


def date_of(name: str) -> str:
    """When a result was measured, and what its script's code says to that."""
    measured = load(RESULTS / f"{name}.json")[STAMP]
    return provenance.told(measured, provenance.code_of(script_name(name)))


def relinked(text: str, folder: Path) -> str:
    """Markdown whose links start from the repository's root, for a document in `folder`."""
    return re.sub(
        r"\]\((?!https?:)([^)]+)\)",
        lambda link: f"]({Path(os.path.relpath(ROOT / link[1], folder)).as_posix()})",
        text,
    )


def filled(text: str, folder: Path, date: Callable[[str], str] = date_of) -> str:
    """A document's text, of `folder`, with every block put in anew."""

    def block(found: re.Match) -> str:
        part, name = found["part"], found["name"]
        content = (RESULTS / f"{name}.md").read_text().strip("\n")
        if part != name:
            content = "\n\n".join(content.split("\n\n")[:2])
        shown = relinked(content, folder)
        return f"<!-- {part} -->\n{shown}\n\n*{date(name)}*\n<!-- end of {part} -->"

    return BLOCK.sub(block, text)


def undated(text: str) -> str:
    """A document's text without the lines that say when blocks were measured."""
    return DATE.sub("", text)


def whole_blocks() -> Iterator[str]:
    """Names of the results that stand in the documents with all that is said of them."""
    for document in DOCUMENTS:
        for found in BLOCK.finditer(document.read_text()):
            if found["part"] == found["name"]:
                yield found["name"]


def main(check: bool = False) -> None:
    """Fill both documents, or only look whether they are filled, dates left aside."""
    for document in DOCUMENTS:
        text = document.read_text()
        new = filled(text, document.parent)
        if not check:
            document.write_text(new)
        elif undated(new) != undated(text):
            sys.exit(f"{document.name}: run python -m experiments.readme.")


if __name__ == "__main__":
    tyro.cli(main)
