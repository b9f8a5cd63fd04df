# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns that lie one after the other in a file, as a scan of rows and columns.

Where a file does not state rows and columns they must be given; they are never guessed. Not all of
its frames need be of the scan: those before its start and after its end, and those that a camera
takes at the end of each scan row while the beam flies back, are left out (`Frames`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxstem.errors import InputError, NotStated
from jaxstem.files.cube import Cube, check_shape


def checked_cube(cube: Cube) -> Cube:
    """The cube, once its shape is known to make sense and its last pattern to be there."""
    check_shape(cube.shape, cube.dtype, cube.source)
    cube.read(slice(cube.shape[0] - 1, None), slice(cube.shape[1] - 1, None))
    return cube


class Frames(NamedTuple):
    """Which frames of a file are its scan: from `start` to `stop - 1`, counted from 0 (None: to the
    last one), without the last `flyback` ones of each scan row.
    """

    start: int = 0
    stop: int | None = None
    flyback: int = 0


ALL_FRAMES = Frames()


def framed(
    cube: Cube,
    stated: tuple[int, int] | None,
    given: tuple[int, int] | None = None,
    frames: Frames = ALL_FRAMES,
) -> Cube:
    """The scan that some frames of a cube are, with the rows and columns that it has.

    stated: rows and columns that the file states, flyback included, where it does; given: those of
    the scan, flyback not counted. Entries of the calibration at each position follow. Raises
    InputError for frames that are not there and shapes that do not fit, NotStated where the shape
    is not known.
    """
    check_shape(cube.shape, cube.dtype, cube.source)
    own, n = cube.scan_shape, math.prod(cube.scan_shape)
    first, last = frames.start, n if frames.stop is None else frames.stop
    if not 0 <= first < last <= n:
        raise InputError(
            f"{cube.source} holds {n} frames, which leaves none from {first} to {last - 1}; "
            "correct --skip-frames or --frames."
        )
    whole = last - first == n
    if whole and stated == own and given not in (None, (own[0], own[1] - frames.flyback)):
        besides = f" and {frames.flyback} of flyback" if frames.flyback else ""
        raise InputError(
            f"{cube.source} holds {own[0]} × {own[1]} positions, not {given[0]} × {given[1]}"
            f"{besides}; leave out --scan-shape."
        )
    if stated and not whole and math.prod(stated) != last - first:
        rows, left_over = divmod(last - first, stated[1])
        stated = None if left_over else (rows, stated[1])
    shape = likely_scan_shape(last - first, stated, given, Path(cube.source), frames.flyback)
    kept = (shape[0], shape[1] - frames.flyback)
    if kept[1] < 1:
        raise InputError(
            f"{cube.source}: a scan row has {shape[1]} frames, of which --flyback "
            f"{frames.flyback} leaves none; give fewer."
        )
    read = cube.read
    if shape != own or not whole:
        read = stack_reader(lambda part: _flat(cube, part, first), shape)
    read_all = read
    if frames.flyback:

        def read(rows: slice, columns: slice) -> np.ndarray:
            return read_all(rows, slice(*columns.indices(kept[1])))

    def of_positions(value: Any) -> Any:
        if np.shape(value) != own:
            return value
        return np.reshape(np.ravel(value)[first:last], shape)[:, : kept[1]]

    calibration = cube.calibration
    if shape != own or not whole or frames.flyback:
        calibration = {name: of_positions(value) for name, value in calibration.items()}
    return replace(cube, shape=(*kept, *cube.detector_shape), read=read, calibration=calibration)


def _flat(cube: Cube, part: slice, first: int) -> np.ndarray:
    """Frames of a cube as of one row, those of `part` counted from `first`."""
    start, stop, columns = part.start + first, part.stop + first, cube.scan_shape[1]
    if cube.scan_shape[0] == 1:
        return cube.read(slice(0, 1), slice(start, stop, part.step))[0]
    top = start // columns
    block = cube.read(slice(top, -(-stop // columns)), slice(None))
    block = block.reshape(-1, *cube.detector_shape)
    return block[start - top * columns : stop - top * columns : part.step]


def likely_scan_shape(
    n_patterns: int,
    stated: tuple[int, int] | None,
    given: tuple[int, int] | None,
    path: Path,
    flyback: int = 0,
) -> tuple[int, int]:
    """Rows and columns of a stack of patterns, `flyback` of each row counted that are not in the
    shape `given`. A single pattern is a scan of one position.
    """
    if given is not None:
        whole = (given[0], given[1] + flyback)
        if min(given) < 1 or math.prod(whole) != n_patterns:
            besides = f" with {flyback} of flyback after each row" if flyback else ""
            raise InputError(
                f"{path} holds {n_patterns} patterns, which are not {given[0]} × {given[1]}"
                f"{besides}; correct --scan-shape ROWS COLUMNS, or say with --frames START STOP "
                "which frames are the scan."
            )
        return whole
    if stated is not None and stated[0] * stated[1] == n_patterns:
        return stated
    if n_patterns == 1 and stated is None:
        return 1, 1
    side = round(np.sqrt(n_patterns))
    square = f" ({side} {side} if it is square)" if side * side == n_patterns else ""
    raise NotStated(
        f"{path} holds {n_patterns} patterns and does not state the shape of the scan; give it "
        f"with --scan-shape ROWS COLUMNS{square}.",
        what=f"the shape of the scan of {n_patterns} patterns{square}",
        option="scan_shape",
        stand_in=(1, max(1, n_patterns - flyback)),
    )


def stack_reader(
    fetch: Callable[[slice], np.ndarray], scan_shape: tuple[int, int]
) -> Callable[[slice, slice], np.ndarray]:
    """Reads (rows, columns) of a scan from its patterns in one row, of which `fetch` gives some."""
    n_rows, n_columns = scan_shape

    def read(rows: slice, columns: slice) -> np.ndarray:
        first, last, step = rows.indices(n_rows)
        if columns == slice(None) and step == 1:
            block = fetch(slice(first * n_columns, last * n_columns))
            return block.reshape(last - first, n_columns, *block.shape[1:])
        start, stop, each = columns.indices(n_columns)
        lines = [
            fetch(slice(row * n_columns + start, row * n_columns + stop, each))
            for row in range(first, last, step)
        ]
        return np.stack(lines)

    return read
