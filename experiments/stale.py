# SPDX-License-Identifier: GPL-3.0-or-later
"""Which results are of the code that stands.

    python -m experiments.stale

A line for each JSON in results/: its name, when it was measured, `fresh`, `stale` or `no stamp`
(common/provenance.py says what counts as the code), and the first command that its script's
docstring names. Ends with 1 if a result that README.md or docs/results.md states is not fresh.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from experiments.common import provenance
from experiments.common.provenance import sources
from experiments.common.results import RESULTS, STAMP, load
from experiments.tables import script_name


class Result(NamedTuple):
    """A result and how it stands: `fresh`, `stale` or `no stamp`."""

    name: str
    date: str
    state: str
    command: str
    is_stated: bool


def command(script: str, text: str) -> str:
    """How a script says that it is run, in its docstring; if it does not, without options."""
    named = re.search(rf"^ +(python -m {re.escape(script)}\b(?:.*\\\n)*.*)$", text, re.MULTILINE)
    if not named:
        return f"python -m {script}"
    # what stands behind the command, three blanks apart, says something of it
    return re.split(r" {3,}", re.sub(r"\s*\\\n\s*", " ", named[1]))[0]


def standing(folder: Path = RESULTS) -> Iterator[Result]:
    """All results of a folder."""
    for path in sorted(folder.glob("*.json")):
        script, measured = script_name(path.stem), load(path)[STAMP]
        yield Result(
            path.stem,
            measured.get("date", "–"),
            provenance.state(measured, provenance.code_of(script)),
            command(script, sources()[script]),
            path.with_suffix(".md").exists(),
        )


def main(folder: Path = RESULTS) -> int:
    """Print all, and say by the exit code whether what is stated is fresh."""
    found = list(standing(folder))
    for name, date, state, again, is_stated in found:
        mark = "" if is_stated else "    (not stated)"
        print(f"{name:18} {date:10}  {state:8}  {again}{mark}")
    return int(any(x.is_stated and x.state != "fresh" for x in found))


if __name__ == "__main__":
    sys.exit(main())
