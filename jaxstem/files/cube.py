# SPDX-License-Identifier: GPL-3.0-or-later
"""A raw 4D-STEM scan whose patterns are read a few rows at a time.

A data cube holds one diffraction pattern for each beam position, axes (scan rows, scan columns,
detector rows, detector columns): hundreds of megabytes to terabytes, so it never lies in memory as
a whole. A `Cube` knows the shape and the calibration that the file states, and reads patterns when
asked. Detector axis 0 is lab x (`qx`), axis 1 lab y (`qy`), as everywhere in jaxstem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Num, Shaped

from jaxstem.errors import InputError
from jaxstem.files.units import check_scan_step

_SMALLEST_DETECTOR = 8


@dataclass(frozen=True)
class Cube:
    """A scan of diffraction patterns and what its file says about it.

    shape: (scan rows, scan columns, detector rows, detector columns); dtype: of the stored counts;
    read: `read(rows, columns)` with two slices gives the patterns there, in the file's own numbers;
    pixel_size: of the detector in 1/Å, None where not stated; calibration: entries of the file as
    `read_disks` knows them (`qx0`, `qy0`, `a`, `b`, `theta`, `QR_rotation`, `QR_flip`
    and others), handed on to the disks; scan_step in scan_units; voltage_kv in kV or None;
    pixel_units: those of a stated pixel size that cannot be used, if there is one; axes: in words,
    what is known of the order in which rows and columns of the detector are given.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype
    read: Callable[[slice, slice], Num[np.ndarray, "rows columns height width"]]
    pixel_size: float | None
    calibration: dict[str, Any]
    scan_step: float
    scan_units: str
    voltage_kv: float | None
    source: str
    pixel_units: str | None = None
    axes: str = "axes as stored"

    @property
    def scan_shape(self) -> tuple[int, int]:
        """(scan rows, scan columns)."""
        return self.shape[:2]

    @property
    def detector_shape(self) -> tuple[int, int]:
        """(detector rows, detector columns)."""
        return self.shape[2:]

    def rows(self, start: int, stop: int) -> Num[np.ndarray, "rows columns height width"]:
        """The patterns of the scan rows `start` to `stop - 1`, in the file's own numbers."""
        return self.read(slice(start, stop), slice(None))


def cube_from_array(
    patterns: Shaped[np.ndarray, "..."],
    pixel_size: float | None = None,
    scan_step: float = 1.0,
    scan_units: str = "pixels",
    voltage_kv: float | None = None,
    source: str = "array",
) -> Cube:
    """A cube from patterns in memory (or an `np.memmap`), (ny, nx, height, width); pixel_size in
    1/Å. Raises InputError for an array that is no scan of patterns, and a step that is none.
    """
    check_scan_step(scan_step, scan_units)
    check_shape(patterns.shape, patterns.dtype, source)
    return Cube(
        shape=patterns.shape,
        dtype=patterns.dtype,
        read=lambda rows, columns: np.asarray(patterns[rows, columns]),
        pixel_size=pixel_size,
        calibration={"Q_pixel_size": pixel_size, "Q_pixel_units": "A^-1"} if pixel_size else {},
        scan_step=scan_step,
        scan_units=scan_units,
        voltage_kv=voltage_kv,
        source=source,
    )


def chunks(
    cube: Cube, n_patterns: int
) -> Iterator[tuple[int, Num[np.ndarray, "n_patterns height width"]]]:
    """The patterns of a scan, about `n_patterns` at a time, each with its first flat position.

    Reads whole scan rows, or pieces of a row where a row holds more.
    """
    n_rows, n_columns = cube.scan_shape
    rows_each = max(1, n_patterns // n_columns)
    columns_each = min(n_columns, max(n_patterns, 1))
    for row in range(0, n_rows, rows_each):
        for column in range(0, n_columns, columns_each):
            block = cube.read(slice(row, row + rows_each), slice(column, column + columns_each))
            yield row * n_columns + column, _native(block.reshape(-1, *cube.detector_shape))


def _native(patterns: Num[np.ndarray, "..."]) -> Num[np.ndarray, "..."]:
    """The same numbers in this machine's order of bytes, which devices take for granted."""
    return patterns.astype(patterns.dtype.newbyteorder("="), copy=False)


def sample(cube: Cube, n_patterns: int) -> Num[np.ndarray, "n height width"]:
    """About `n_patterns` patterns spread evenly over the scan, for estimates."""
    n_rows, n_columns = cube.scan_shape
    n_rows_read = min(n_rows, max(1, round(np.sqrt(n_patterns * n_rows / n_columns))))
    rows = np.unique(np.linspace(0, n_rows - 1, n_rows_read).round().astype(int))
    step = max(1, n_columns * len(rows) // n_patterns)
    # the first column shifts from row to row, so that no column is looked at twice as often
    starts = [number % step for number in range(len(rows))]
    blocks = [
        cube.read(slice(row, row + 1), slice(start, None, step))[0]
        for row, start in zip(rows.tolist(), starts, strict=True)
    ]
    return _native(np.concatenate(blocks))


def check_shape(shape: tuple[int, ...], dtype: np.dtype, source: str) -> None:
    """Raise InputError unless an array can be a scan of diffraction patterns."""
    if len(shape) != 4:
        raise InputError(
            f"{source} holds an array of {len(shape)} axes; give one of four, (scan rows, scan "
            "columns, detector rows, detector columns)."
        )
    if min(shape) < 1 or min(shape[2:]) < _SMALLEST_DETECTOR or dtype.kind not in "iuf":
        raise InputError(
            f"{source}: the data cube has shape {tuple(shape)} and numbers of kind {dtype}; give "
            f"real numbers over at least one position and {_SMALLEST_DETECTOR} × "
            f"{_SMALLEST_DETECTOR} detector pixels."
        )
