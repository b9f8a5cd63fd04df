# SPDX-License-Identifier: GPL-3.0-or-later
"""Raw patterns from a file of any format: EMD 1.0 or py4DSTEM HDF5 here, what detectors and
other programs write by `rosetta.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxstem.errors import InputError
from jaxstem.files.axes import changed
from jaxstem.files.calibration import stated_pixel_size, stated_scan_step
from jaxstem.files.cube import Cube, check_shape
from jaxstem.files.emd import (
    emd_attribute,
    emd_calibration,
    emd_metadata,
    emd_root,
    holds_disks,
    stated_voltage_kv,
)
from jaxstem.files.hdf5 import open_hdf5
from jaxstem.files.stack import ALL_FRAMES, Frames, framed
from jaxstem.files.units import without_angles


def read_cube(
    path: str | Path,
    scan_shape: tuple[int, int] | None = None,
    calibration: Mapping[str, Any] | None = None,
    voltage_kv: float | None = None,
    frames: Frames = ALL_FRAMES,
) -> Cube:
    """The scan in a file, without its patterns (formats: docs/file-formats.md).

    scan_shape: (rows, columns), for formats that do not state it, flyback not counted; calibration:
    entries that replace those of the file (`files.axes.changed`); voltage_kv [kV]: instead of the
    file's; frames: which of the file's are the scan. Raises InputError for a file that is missing,
    damaged or not known, that holds no scan or several, or whose shape or calibration cannot be
    used; `read` raises it for patterns that cannot be read.
    """
    from jaxstem.files.formats import format_of
    from jaxstem.files.rosetta import raw_cube  # which needs Cube

    if format_of(path):
        cube = raw_cube(path, scan_shape, voltage_kv, frames)
        together = changed(cube.calibration, calibration or {})
        size = stated_pixel_size(together, path) if "Q_pixel_size" in together else None
        return replace(cube, calibration=together, pixel_size=size)
    cube, stated = _emd_cube(Path(path), calibration or {}, voltage_kv, scan_shape is not None)
    return framed(cube, stated, scan_shape, frames)


def _emd_cube(
    path: Path, changes: Mapping[str, Any], voltage_kv: float | None, shaped: bool
) -> tuple[Cube, tuple[int, int] | None]:
    """The data cube of an EMD 1.0 or py4DSTEM HDF5 file, and its rows and columns: the only
    four-dimensional array of numbers, or the one that py4DSTEM marked as a `DataCube`. Where the
    scan is `shaped` by the user, an array of three axes or two does, patterns in a row.
    """
    with open_hdf5(path) as file:
        dataset = _cube_dataset(file, path, shaped)
        name, shape, dtype = dataset.name, dataset.shape, dataset.dtype
        stacked = len(shape) < 4
        shape = ((1,) * 4 + shape)[-4:]
        check_shape(shape, dtype, str(path))
        root = emd_root(dataset.parent)
        calibration = emd_calibration(root)
        if not calibration and "calibration" in file:
            calibration = emd_metadata(file["calibration"])
        voltage_kv = voltage_kv or stated_voltage_kv(root, path)
        calibration = without_angles(changed(calibration, changes), voltage_kv)
        stated = "Q_pixel_size" in calibration and calibration.get("Q_pixel_units") != "pixels"
        pixel_size = stated_pixel_size(calibration, path) if stated else None

    def read(rows: slice, columns: slice) -> np.ndarray:
        with open_hdf5(path) as file:
            if not stacked:
                return file[name][rows, columns]
            own = file[name][columns] if file[name].ndim == 3 else file[name][()][None][columns]
            return own[None][rows]

    scan_step, scan_units = stated_scan_step(calibration)
    cube = Cube(
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
    return cube, None if stacked else cube.scan_shape


def _cube_dataset(file: h5py.File, path: Path, shaped: bool) -> h5py.Dataset:
    """The data cube of an HDF5 file, whatever its name and depth; where the scan is `shaped` by the
    user and there is none, the only stack of patterns, or the only one.
    """
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
    for rank in (3, 2) if shaped else ():
        found = found or [node for node in other if node.ndim == rank]
    if not found:
        largest = max(other, key=lambda node: node.size, default=None)
        held = f"; its largest array has {largest.ndim} axes" if largest is not None else ""
        either = "" if holds_disks(path) else " and no Bragg vectors"
        raise InputError(
            f"{path} holds no 4D-STEM data cube{either}{held}; give a file with one array of "
            "numbers over (scan rows, scan columns, detector rows, detector columns), or "
            "--scan-shape ROWS COLUMNS for patterns in a row."
        )
    if len(found) > 1:
        names = ", ".join(node.name for node in found)
        raise InputError(f"{path} holds several data cubes ({names}); save one alone.")
    return found[0]
