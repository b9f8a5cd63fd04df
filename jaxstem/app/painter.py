# SPDX-License-Identifier: GPL-3.0-or-later
"""A process beside this one that draws a map once there is one.

What draws (matplotlib, orix) takes a second or two to load. Another process can do that on another
core while this one loads jax and reads the scan; jax itself is not loaded there, so that devices
are left alone. It ends with this one, however that ends: its input is closed then.

Orders go there as lines of JSON, the arguments of `paint`, and each is answered by `_DONE`.
"""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

_DONE = "painted"

LOADED = "orix.plot"
"""The module whose loading takes longest; with it here no other process is needed."""


class Painter(AbstractContextManager):
    """Draws maps in a process of its own, or in this one if that cannot be had."""

    def __init__(self) -> None:
        self._process = None if LOADED in sys.modules else _started()

    def paint(self, map_file: Path, picture: Path, every: int) -> None:
        """`maps.figure` of every `every`-th row and column of a map, a picture there replaced.

        Raises InputError as `maps.figure` and `read_map` do.
        """
        if not self._asked([str(Path(map_file).absolute()), str(Path(picture).absolute()), every]):
            paint(map_file, picture, every)

    def _asked(self, order: list) -> bool:
        """Whether the other process did it."""
        if self._process is None:
            return False
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return any(line.strip() == _DONE for line in self._process.stdout)
        except OSError:  # it has ended
            return False

    def close(self) -> None:
        """End the other process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __exit__(self, *_) -> None:
        self.close()


def paint(map_file: str | Path, picture: str | Path, every: int) -> None:
    """`maps.figure` of every `every`-th row and column of a map, a picture there replaced."""
    from jaxstem.files.map_file import read_map
    from jaxstem.maps.drawing import figure

    figure(read_map(map_file, every), picture, overwrite=True)


def _started() -> subprocess.Popen | None:
    """The other process, or None where none can be started. What it would say of errors is left to
    this process, which then tries itself.
    """
    here = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "jaxstem.app.painter"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": here},
            encoding="utf-8",
        )
    except (OSError, ValueError):
        return None


def serve() -> None:
    """Load what draws, then obey the orders of the standard input to its end."""
    gc.disable()  # of what is loaded and drawn all lives to the end, as a rule
    from matplotlib.figure import Figure

    from jaxstem.maps.colours import load_orix

    load_orix()
    blank = Figure()
    blank.text(0.5, 0.5, "fonts are looked for, formulae like $5^2$ and what writes PNG are loaded")
    blank.savefig(io.BytesIO(), format="png")
    for order in sys.stdin:
        paint(*json.loads(order))
        print(_DONE, flush=True)


if __name__ == "__main__":
    serve()
