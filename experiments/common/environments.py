# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripts that run in an environment of their own, where another program is and jaxstem is not."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.common.results import ROOT


def elsewhere(python: Path, script: str, words: Iterable[object]) -> tuple[list[str], dict]:
    """The command that runs experiments.SCRIPT with an environment's Python, from the repository's
    root, and what `subprocess` must be told beside it. Paths among the words may be relative.
    """
    shown = [str(word.absolute() if isinstance(word, Path) else word) for word in words]
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    program = Path(shutil.which(python) or python).absolute()
    return [str(program), "-m", f"experiments.{script}", *shown], {"cwd": ROOT, "env": kept}


def run_elsewhere(python: Path, script: str, words: Iterable[object], **more: Any) -> None:
    """Run it to its end; an error of it is one here."""
    command, where = elsewhere(python, script, words)
    subprocess.run(command, check=True, **where, **more)
