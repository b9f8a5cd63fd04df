# SPDX-License-Identifier: GPL-3.0-or-later
"""A packed table of disks, read at the speed of the storage.

BraggVectors hold one small list for each scan position, and HDF5 spends some ten microseconds on
each of them. The packed table is a scan as it lies in memory (`DiskScan`): the
calibrated disks of all positions one after the other as float32, and the offsets at which each
position's begin, so that a range of positions is one range of numbers. docs/file-formats.md has the
layout.

`write_packed` makes it from any scan, `packed_source` reads it; neither holds more than a piece of
the scan, besides 8 bytes for each position.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from jaxstem.errors import InputError
from jaxstem.files.hdf5 import open_hdf5, plain_value
from jaxstem.files.hdf5_writing import create_hdf5
from jaxstem.files.scan import DISK_FIELDS, LARGEST, DiskScan, DiskSource, no_disk_at_all
from jaxstem.runtime.paths import atomic_path
from jaxstem.version import __version__

_FORMAT, _VERSION = "jaxstem-disks", 1

CHUNK = 1 << 18
"""Disks in a chunk of the file: 1 MiB of each of the three numbers."""

PIECE = 1 << 14
"""Positions read and written at once."""

_REMEDY = "make it again with 'jaxstem convert'"


def is_packed(path: str | Path) -> bool:
    """Whether a file is a packed table. Raises InputError for a file that cannot be read."""
    with open_hdf5(path) as file:
        return file.attrs.get("format") == _FORMAT


def write_packed(
    path: str | Path, source: DiskSource, overwrite: bool = False, progress: bool | None = None
) -> int:
    """Store a scan as a packed table, piece by piece; the number of disks.

    `progress`: show a bar (None: on a terminal). Raises InputError where the file exists and
    `overwrite` is False, or cannot be written, for a scan without any disk, and as the source does.
    """
    n_positions = int(np.prod(source.scan_shape))
    disable = None if progress is None else not progress
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(path, overwrite))
        file, check = stack.enter_context(create_hdf5(temporary))
        bar = stack.enter_context(tqdm(total=n_positions, unit="position", disable=disable))
        file.attrs.update({"format": _FORMAT, "version": _VERSION, "jaxstem_version": __version__})
        file.attrs.update({"scan_shape": source.scan_shape, "scan_step": source.scan_step})
        file.attrs["scan_units"] = source.scan_units
        if source.voltage_kv is not None:
            file.attrs["voltage_kv"] = source.voltage_kv
        tables = {
            name: file.create_dataset(name, (0,), np.float32, maxshape=(None,), chunks=(CHUNK,))
            for name in DISK_FIELDS
        }
        offsets = file.create_dataset("offsets", (n_positions + 1,), np.int64)
        offsets[0] = total = done = 0
        for start, stop in source.pieces(PIECE):
            piece = source.read(start, stop)
            own = slice(total, total + len(piece.qx))
            for name, table in tables.items():
                table.resize((own.stop,))
                table[own] = getattr(piece, name)
            count = len(piece.offsets) - 1
            offsets[done + 1 : done + 1 + count] = piece.offsets[1:] + total
            check()
            total, done = own.stop, done + count
            bar.update(count)
        if not total:
            raise no_disk_at_all(source)
    return total


def packed_source(path: str | Path) -> DiskSource:
    """A packed table as a source of disks, calibrated already.

    Raises InputError for a file that is missing, damaged, no packed table, made by a newer jaxstem,
    or whose parts do not fit together; `read` raises it for disks that are not finite.
    """
    with open_hdf5(path) as file:
        attributes = dict(file.attrs)
        if attributes.get("format") != _FORMAT:
            raise InputError(f"{path} is not a packed table of disks; {_REMEDY}.")
        version = attributes.get("version")
        if version != _VERSION:
            raise InputError(
                f"{path} is a packed table of layout version {version}, and this jaxstem reads "
                f"version {_VERSION}; update jaxstem."
            )
        problem = _layout_problem(file)
        if problem:
            raise InputError(f"{path}: {problem}; {_REMEDY}.")
        scan_shape = tuple(int(n) for n in attributes["scan_shape"])
        offsets = file["offsets"][()].astype(np.int64, copy=False)
        problem = _offsets_problem(offsets, len(file["qx"]))
        if problem:
            raise InputError(f"{path}: {problem}; {_REMEDY}.")
    scan_step, scan_units = (
        float(attributes["scan_step"]),
        str(plain_value(attributes["scan_units"])),
    )
    voltage_kv = attributes.get("voltage_kv")
    voltage_kv = None if voltage_kv is None else float(voltage_kv)

    def read(start: int, stop: int) -> DiskScan:
        own = offsets[start * scan_shape[1] : stop * scan_shape[1] + 1]
        with open_hdf5(path) as file:
            disks = {name: file[name][own[0] : own[-1]] for name in DISK_FIELDS}
        for name, values in disks.items():
            finite = np.abs(values) < LARGEST
            if not finite.all():
                position = np.searchsorted(own[1:] - own[0], np.argmin(finite), side="right")
                row, column = divmod(int(position) + start * scan_shape[1], scan_shape[1])
                raise InputError(
                    f"{path}: '{name}' of a disk at scan position ({row}, {column}) is not "
                    f"finite; {_REMEDY}."
                )
        return DiskScan(
            **{name: values.astype(np.float32, copy=False) for name, values in disks.items()},
            offsets=own - own[0],
            scan_shape=(stop - start, scan_shape[1]),
            scan_step=scan_step,
            scan_units=scan_units,
            voltage_kv=voltage_kv,
            source=str(path),
        )

    return DiskSource(scan_shape, scan_step, scan_units, voltage_kv, str(path), read)


def _layout_problem(file: h5py.File) -> str | None:
    """What is missing, or of the wrong kind or length, or None."""
    kinds = {"offsets": "iu", **dict.fromkeys(DISK_FIELDS, "f")}
    for name, kind in kinds.items():
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            return f"'{name}' is missing"
        if dataset.ndim != 1 or dataset.dtype.kind not in kind:
            return f"'{name}' is not one row of numbers"
    for name in ("scan_shape", "scan_step", "scan_units"):
        if name not in file.attrs:
            return f"the attribute '{name}' is missing"
    shape = np.asarray(file.attrs["scan_shape"])
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or shape.min() < 1:
        return f"the scan shape is {file.attrs['scan_shape']} and not (rows, columns)"
    for name in ("scan_step", "voltage_kv"):
        stated = np.asarray(file.attrs.get(name, 1.0))
        if stated.shape or stated.dtype.kind not in "iuf" or not 0 < stated < np.inf:
            return f"the attribute '{name}' is {stated.tolist()!r} and not a positive number"
    lengths = {name: len(file[name]) for name in DISK_FIELDS}
    if len(set(lengths.values())) > 1:
        return "the lengths differ: " + ", ".join(f"{n} of '{name}'" for name, n in lengths.items())
    if len(file["offsets"]) != int(np.prod(shape)) + 1:
        rows, columns = shape
        return f"{len(file['offsets'])} offsets are not one more than {rows} × {columns} positions"
    return None


def _offsets_problem(offsets: Int[np.ndarray, " positions_plus_1"], n_disks: int) -> str | None:
    if np.any(np.diff(offsets) < 0):
        return "the offsets are not in ascending order"
    if offsets[0] != 0 or offsets[-1] != n_disks:
        return f"the offsets run from {offsets[0]} to {offsets[-1]}, but there are {n_disks} disks"
    return None
