# SPDX-License-Identifier: GPL-3.0-or-later
"""Any file of a scan as calibrated disks: lists are read, raw patterns searched first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxstem.detection.config import DEFAULT, DetectConfig
from jaxstem.detection.reading import OF_PATTERNS, OF_PIXELS, ReadOptions
from jaxstem.detection.scan import detect_in_cube, progress_bar
from jaxstem.errors import InputError
from jaxstem.files.csv import read_csv
from jaxstem.files.cube import Cube
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.emd import bragg_source, holds_disks
from jaxstem.files.formats import READERS, format_of
from jaxstem.files.packed import is_packed, packed_source
from jaxstem.files.pyxem import holds_vectors, read_vectors
from jaxstem.files.scan import DiskScan, DiskSource, no_disk_at_all, source_of


def open_scan(
    path: str | Path,
    options: ReadOptions | None = None,
    progress: bool | None = None,
    *,
    config: DetectConfig = DEFAULT,
    **stated: Any,
) -> DiskSource:
    """The calibrated disks of a file, read when asked for: Bragg vectors, a packed table, CSV,
    pyxem's vectors, or raw patterns, in which disks are found first.

    `options` say what the file does not; `stated` are options by their names (`voltage_kv=300.0`),
    which win. `progress`: show a bar while disks are found (None: on a terminal); `config`: how
    they are found, besides what the options say. Raises InputError as the readers do, and for
    options that cannot matter to this file.
    """
    options = replace(options or ReadOptions(), **stated)
    listed = open_disks(path, options)
    if listed is not None:
        return listed
    cube = open_cube(path, options)
    with progress_bar(cube, progress) as advance:
        return source_of(detect_in_cube(cube, options.detection(config), progress=advance))


def open_disks(path: str | Path, options: ReadOptions) -> DiskSource | None:
    """The calibrated disks of a file that lists them; None for raw patterns.

    Raises InputError as `open_scan` does.
    """
    path = Path(path)
    read = _calibrated_already(path)
    if read is None and (format_of(path) is not None or not holds_disks(path)):
        return None
    options.refuse(OF_PATTERNS, f"{path} lists disks that were found already")
    if read is not None:
        options.refuse(OF_PIXELS, f"{path} holds disks in 1/Å already")
        source = read(path)
        if options.voltage_kv is not None:
            source = replace(source, voltage_kv=options.voltage_kv)
    else:
        source = bragg_source(path, options.entries(), options.voltage_kv)
    if options.scan_shape not in (None, tuple(source.scan_shape)):
        (rows, columns), given = source.scan_shape, options.scan_shape
        raise InputError(
            f"{path} holds {rows} × {columns} positions, not {given[0]} × {given[1]}; leave out "
            "--scan-shape."
        )
    return source


def open_cube(path: str | Path, options: ReadOptions) -> Cube:
    """The raw patterns of a file. Raises InputError as `read_cube` does."""
    return read_cube(path, options.scan_shape, options.entries(), options.voltage_kv)


def _calibrated_already(path: Path) -> Callable[[Path], DiskSource] | None:
    """The reader of a file whose disks are in 1/Å, None for another file."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return lambda path: source_of(read_csv(path))
    if suffix == ".hspy":
        return (lambda path: source_of(read_vectors(path))) if holds_vectors(path) else None
    if suffix not in READERS and suffix != ".raw" and is_packed(path):
        return packed_source
    return None


def read_scan(
    path: str | Path,
    options: ReadOptions | None = None,
    progress: bool | None = None,
    *,
    config: DetectConfig = DEFAULT,
    **stated: Any,
) -> DiskScan:
    """All calibrated disks of a file that `open_scan` opens, in memory; arguments as there.

    Raises InputError as `open_scan` does, for disks that cannot be used, and where there are none.
    """
    source = open_scan(path, options, progress, config=config, **stated)
    scan = source.read(0, source.scan_shape[0])
    if not len(scan.qx):
        raise no_disk_at_all(source)
    return scan
