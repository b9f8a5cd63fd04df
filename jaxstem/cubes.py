# SPDX-License-Identifier: GPL-3.0-or-later
"""Raw 4D-STEM scans, read a few rows at a time.

A data cube holds one diffraction pattern for each beam position, axes (scan rows, scan columns,
detector rows, detector columns): hundreds of megabytes to terabytes, so it never lies in memory as
a whole. A `Cube` knows the shape and the calibration that the file states, and reads patterns when
asked. `read_cube` makes one from a file: EMD 1.0 or py4DSTEM HDF5 here, what detectors and other
programs write by `jaxstem.rawfiles`. `cube_from_array` makes one from an array.

Detector axis 0 is lab x (`qx`), axis 1 lab y (`qy`), as everywhere in jaxstem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Num

from jaxstem.errors import InputError
from jaxstem.io import (
    emd_attribute,
    emd_calibration,
    emd_metadata,
    emd_root,
    holds_disks,
    open_hdf5,
    stated_pixel_size,
    stated_scan_step,
    stated_voltage_kv,
    without_angles,
)

SMALLEST_DETECTOR = 8


@dataclass(frozen=True)
class Cube:
    """A scan of diffraction patterns and what its file says about it.

    shape: (scan rows, scan columns, detector rows, detector columns); dtype: of the stored counts;
    read: `read(rows, columns)` with two slices gives the patterns there, in the file's own numbers;
    pixel_size: of the detector in 1/Å, None where not stated; calibration: entries of the file as
    `jaxstem.io.read_disks` knows them (`qx0`, `qy0`, `a`, `b`, `theta`, `QR_rotation`, `QR_flip`
    and others), handed on to the disks; scan_step in scan_units; voltage_kv in kV or None;
    pixel_units: those of a stated pixel size that cannot be used, if there is one.
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


def read_cube(
    path: str | Path,
    scan_shape: tuple[int, int] | None = None,
    calibration: Mapping[str, Any] | None = None,
    voltage_kv: float | None = None,
) -> Cube:
    """The scan in a file, without its patterns (formats: docs/file-formats.md).

    scan_shape: (rows, columns), for formats that do not state it; calibration: entries that replace
    those of the file; voltage_kv [kV]: instead of the file's. Raises InputError for a file that is
    missing, damaged or not known, that holds no scan or several, or whose shape or calibration
    cannot be used; `read` raises it for patterns that cannot be read.
    """
    from jaxstem import rawfiles  # which needs Cube

    if rawfiles.format_of(path):
        cube = rawfiles.raw_cube(path, scan_shape, voltage_kv)
        changes = dict(calibration or {})
        together = cube.calibration | changes
        size = stated_pixel_size(together, path) if "Q_pixel_size" in together else None
        return replace(cube, calibration=together, pixel_size=size)
    cube = _emd_cube(Path(path), calibration or {}, voltage_kv)
    if scan_shape is not None and tuple(scan_shape) != cube.scan_shape:
        raise InputError(
            f"{path} holds {cube.shape[0]} × {cube.shape[1]} positions, not {scan_shape[0]} × "
            f"{scan_shape[1]}; leave out --scan-shape."
        )
    return cube


def _emd_cube(path: Path, changes: Mapping[str, Any], voltage_kv: float | None) -> Cube:
    """The data cube of an EMD 1.0 or py4DSTEM HDF5 file: the only four-dimensional array of
    numbers, or the one that py4DSTEM marked as a `DataCube`.
    """
    with open_hdf5(path) as file:
        dataset = _cube_dataset(file, path)
        name, shape, dtype = dataset.name, dataset.shape, dataset.dtype
        root = emd_root(dataset.parent)
        calibration = emd_calibration(root)
        if not calibration and "calibration" in file:
            calibration = emd_metadata(file["calibration"])
        voltage_kv = voltage_kv or stated_voltage_kv(root, path)
        calibration = without_angles(calibration | dict(changes), voltage_kv)
        stated = "Q_pixel_size" in calibration and calibration.get("Q_pixel_units") != "pixels"
        pixel_size = stated_pixel_size(calibration, path) if stated else None

    def read(rows: slice, columns: slice) -> np.ndarray:
        with open_hdf5(path) as file:
            return file[name][rows, columns]

    scan_step, scan_units = stated_scan_step(calibration)
    return Cube(
        shape=shape,
        dtype=dtype,
        read=read,
        pixel_size=pixel_size,
        calibration=calibration,
        scan_step=scan_step,
        scan_units=scan_units,
        voltage_kv=voltage_kv,
        source=str(path),
    )


def cube_from_array(
    patterns: Num[np.ndarray, "ny nx height width"],
    pixel_size: float | None = None,
    scan_step: float = 1.0,
    scan_units: str = "pixels",
    voltage_kv: float | None = None,
    source: str = "array",
) -> Cube:
    """A cube from patterns in memory (or an `np.memmap`); pixel_size in 1/Å."""
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
            yield row * n_columns + column, block.reshape(-1, *cube.detector_shape)


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
    return np.concatenate(blocks)


def _cube_dataset(file: h5py.File, path: Path) -> h5py.Dataset:
    """The data cube of an HDF5 file, whatever its name and depth."""
    marked, plain, other = [], [], []

    def collect(_, node):
        if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "iuf":
            return
        if node.ndim == 4:
            is_cube = emd_attribute(node.parent, "python_class") == "DataCube"
            (marked if is_cube else plain).append(node)
        elif node.ndim >= 2:
            other.append(node)

    file.visititems(collect)
    found = marked or plain
    if not found:
        largest = max(other, key=lambda node: node.size, default=None)
        held = f"; its largest array has {largest.ndim} axes" if largest is not None else ""
        either = "" if holds_disks(path) else " and no Bragg vectors"
        raise InputError(
            f"{path} holds no 4D-STEM data cube{either}{held}; give a file with one array of "
            "numbers over (scan rows, scan columns, detector rows, detector columns)."
        )
    if len(found) > 1:
        names = ", ".join(node.name for node in found)
        raise InputError(f"{path} holds several data cubes ({names}); save one alone.")
    check_shape(found[0].shape, found[0].dtype, str(path))
    return found[0]


def check_shape(shape: tuple[int, ...], dtype: np.dtype, source: str) -> None:
    """Raise InputError unless an array can be a scan of diffraction patterns."""
    if len(shape) != 4:
        raise InputError(
            f"{source} holds an array of {len(shape)} axes; give one of four, (scan rows, scan "
            "columns, detector rows, detector columns)."
        )
    if min(shape) < 1 or min(shape[2:]) < SMALLEST_DETECTOR or dtype.kind not in "iuf":
        raise InputError(
            f"{source}: the data cube has shape {tuple(shape)} and numbers of kind {dtype}; give "
            f"real numbers over at least one position and {SMALLEST_DETECTOR} × "
            f"{SMALLEST_DETECTOR} detector pixels."
        )
