# SPDX-License-Identifier: GPL-3.0-or-later
"""The Markdown of results that are there, without measuring.

    python -m experiments.tables [NAME ...]    writes results/NAME.md from results/NAME.json

NAME is that of a script; all whose numbers the documents have, if none is given. For when a
script's `to_markdown` has changed; a script that measures writes its Markdown itself.
"""

import sys
from importlib import import_module
from types import ModuleType

from experiments.common.provenance import ROOT
from experiments.common.results import RESULTS, save_markdown


def script_name(name: str) -> str:
    """experiments.ROOM.NAME, the module that writes results/NAME.json."""
    (path,) = (ROOT / "experiments").glob(f"*/{name}.py")
    return f"experiments.{path.parent.name}.{name}"


def script(name: str) -> ModuleType:
    """That module."""
    return import_module(script_name(name))


def main(names: list[str]) -> None:
    """Write each anew."""
    for name in names or sorted(path.stem for path in RESULTS.glob("*.md")):
        save_markdown(RESULTS / f"{name}.json", script(name).to_markdown)


if __name__ == "__main__":
    main(sys.argv[1:])
