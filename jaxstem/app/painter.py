# SPDX-License-Identifier: GPL-3.0-or-later
"""A process beside this one that draws a map once there is one.

What draws (matplotlib, orix) takes a second or two to load. Another process can do that on another
core while this one loads jax and reads the scan; jax itself is not loaded there, so that devices
are left alone. It ends with this one, however that ends: its input is closed then. It draws into a
folder of its own, so that it leaves nothing whenever it is ended.

Orders go there as lines of JSON, the arguments of `paint`, and each is answered by `_DONE`. Where
the process has ended, or does not answer within `PATIENCE`, this one draws.
"""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
import time
import warnings
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from jaxstem.runtime.paths import replace_file

_DONE = "painted"

PATIENCE = 300.0
"""Seconds that the other process may take for a picture; the largest take a tenth of that."""

_LOOK = 1.0
"""Seconds between two looks of the other process whether this one lives."""

_GRACE = 5.0
"""Seconds until a process that was killed is given up, as one that waits for a dead disk."""

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
        drawn = self._drawn(map_file, Path(picture).name, every)
        if drawn is None:
            paint(map_file, picture, every)
        else:
            replace_file(picture, drawn)

    def _drawn(self, map_file: Path, name: str, every: int) -> bytes | None:
        """The picture that the other process drew, None where it did not."""
        if self._process is None:
            return None
        with suppress(OSError), TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            own = Path(folder) / name
            # in a thread, because waiting for that can be ended
            answers: list[bool] = []
            order = json.dumps([str(Path(map_file).absolute()), str(own), every])
            asking = Thread(target=_ask, args=(self._process, order, answers), daemon=True)
            asking.start()
            try:
                asking.join(PATIENCE)
            finally:
                is_late = asking.is_alive()
                if is_late:
                    self.close()
            if answers == [True]:
                return own.read_bytes()
            if is_late:
                what = f"the process that draws did not answer for {PATIENCE:g} s"
                warnings.warn(f"{what}; the picture is drawn without it.", stacklevel=3)
        return None

    def close(self) -> None:
        """End the other process."""
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=_GRACE)
            self._process = None

    def __exit__(self, *_) -> None:
        self.close()


def _ask(process: subprocess.Popen, order: str, answers: list[bool]) -> None:
    """Append whether the process obeyed."""
    with suppress(OSError, ValueError):  # it has ended
        process.stdin.write(order + "\n")
        process.stdin.flush()
        answers.append(any(line.strip() == _DONE for line in process.stdout))


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
            [sys.executable, "-P", "-m", "jaxstem.app.painter", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": here},
            encoding="utf-8",
        )
    except (OSError, ValueError):
        return None


def _end_with(parent: int) -> None:
    """End this process when the one that began it is no more, be this still loading."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def serve(parent: int) -> None:
    """Load what draws, then obey the orders of the standard input to its end."""
    Thread(target=_end_with, args=(parent,), daemon=True).start()
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
    serve(int(sys.argv[1]))
