# SPDX-License-Identifier: GPL-3.0-or-later
"""The Markdown of results that are there, without measuring.

    python -m experiments.tables [NAME ...]    writes results/NAME.md from results/NAME.json

NAME is that of a script; all whose numbers the README has, if none is given. For when a script's
`to_markdown` has changed; a script that measures writes its Markdown itself.
"""

import sys
from importlib import import_module
from types import ModuleType

from experiments.common.results import RESULTS, ROOT, save_markdown


def script(name: str) -> ModuleType:
    """The module experiments.ROOM.NAME that writes results/NAME.json."""
    (path,) = (ROOT / "experiments").glob(f"*/{name}.py")
    return import_module(f"experiments.{path.parent.name}.{name}")


def main(names: list[str]) -> None:
    """Write each anew."""
    for name in names or sorted(path.stem for path in RESULTS.glob("*.md")):
        save_markdown(RESULTS / f"{name}.json", script(name).to_markdown)


if __name__ == "__main__":
    main(sys.argv[1:])
