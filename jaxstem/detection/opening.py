# SPDX-License-Identifier: GPL-3.0-or-later
"""Any file of a scan as calibrated disks: lists are read, raw patterns searched first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from jaxstem.detection.config import DEFAULT, DetectConfig
from jaxstem.detection.scan import detect_in_cube, progress_bar
from jaxstem.errors import InputError
from jaxstem.files.csv import read_csv
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.emd import bragg_source, holds_disks
from jaxstem.files.formats import READERS, format_of
from jaxstem.files.packed import is_packed, packed_source
from jaxstem.files.pyxem import holds_vectors, read_vectors
from jaxstem.files.scan import DiskScan, DiskSource, no_disk_at_all, source_of


def open_scan(
    path: str | Path,
    config: DetectConfig = DEFAULT,
    progress: bool | None = None,
    scan_shape: tuple[int, int] | None = None,
    calibration: Mapping | None = None,
    voltage_kv: float | None = None,
) -> DiskSource:
    """The calibrated disks of a file, read when asked for: Bragg vectors, a packed table, CSV,
    pyxem's vectors, or raw patterns, in which disks are found first.

    `progress`: show a bar while finding them (None: on a terminal). `scan_shape`, `calibration` and
    `voltage_kv` as in `read_cube`; a calibration, or a pixel size in `config`, replaces what Bragg
    vectors say too. Raises InputError as the readers do, and for a calibration of disks that are
    in 1/Å already.
    """
    changes = dict(calibration or {})
    if config.pixel_size is not None:
        changes |= {"Q_pixel_size": float(config.pixel_size), "Q_pixel_units": "A^-1"}
    read = _calibrated_already(path)
    if read is not None:
        if changes:
            raise InputError(
                f"{path} holds disks in 1/Å already; calibrate the scan that they were found in."
            )
        source = read(path)
        return source if voltage_kv is None else replace(source, voltage_kv=voltage_kv)
    if format_of(path) is None and holds_disks(path):
        return bragg_source(path, changes, voltage_kv)
    cube = read_cube(path, scan_shape, changes, voltage_kv)
    with progress_bar(cube, progress) as advance:
        return source_of(detect_in_cube(cube, config, progress=advance))


def _calibrated_already(path: str | Path) -> Callable[[str | Path], DiskSource] | None:
    """The reader of a file whose disks are in 1/Å, None for another file."""
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        return lambda path: source_of(read_csv(path))
    if suffix == ".hspy":
        return (lambda path: source_of(read_vectors(path))) if holds_vectors(path) else None
    if suffix not in READERS and suffix != ".raw" and is_packed(path):
        return packed_source
    return None


def read_scan(
    path: str | Path,
    config: DetectConfig = DEFAULT,
    progress: bool | None = None,
    scan_shape: tuple[int, int] | None = None,
    calibration: Mapping | None = None,
    voltage_kv: float | None = None,
) -> DiskScan:
    """All calibrated disks of a file that `open_scan` opens, in memory.

    Raises InputError as `open_scan` does, for disks that cannot be used, and where there are none.
    """
    source = open_scan(path, config, progress, scan_shape, calibration, voltage_kv)
    scan = source.read(0, source.scan_shape[0])
    if not len(scan.qx):
        raise no_disk_at_all(source)
    return scan
