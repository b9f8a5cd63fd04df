# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns that lie one after the other in a file, as a scan of rows and columns.

Where a file does not state rows and columns they must be given; they are never guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxstem.errors import InputError, NotStated
from jaxstem.files.cube import Cube, check_shape


def checked_cube(cube: Cube) -> Cube:
    """The cube, once its shape is known to make sense and its last pattern to be there."""
    check_shape(cube.shape, cube.dtype, cube.source)
    cube.read(slice(cube.shape[0] - 1, None), slice(cube.shape[1] - 1, None))
    return cube


def likely_scan_shape(
    n_patterns: int,
    stated: tuple[int, int] | None,
    given: tuple[int, int] | None,
    path: Path,
) -> tuple[int, int]:
    """Rows and columns of a stack of patterns."""
    if given is not None:
        if min(given) < 1 or given[0] * given[1] != n_patterns:
            raise InputError(
                f"{path} holds {n_patterns} patterns, which are not {given[0]} × {given[1]}; "
                "correct --scan-shape ROWS COLUMNS."
            )
        return given
    if stated is not None and stated[0] * stated[1] == n_patterns:
        return stated
    side = round(np.sqrt(n_patterns))
    square = f" ({side} {side} if it is square)" if side * side == n_patterns else ""
    raise NotStated(
        f"{path} holds {n_patterns} patterns and does not state the shape of the scan; give it "
        f"with --scan-shape ROWS COLUMNS{square}.",
        what=f"the shape of the scan of {n_patterns} patterns{square}",
        option="scan_shape",
        stand_in=(1, n_patterns),
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
