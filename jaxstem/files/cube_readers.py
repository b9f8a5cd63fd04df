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
from jaxstem.files.units import without_angles


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
    from jaxstem.files.formats import format_of
    from jaxstem.files.rosetta import raw_cube  # which needs Cube

    if format_of(path):
        cube = raw_cube(path, scan_shape, voltage_kv)
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
