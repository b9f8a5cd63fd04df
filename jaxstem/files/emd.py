# SPDX-License-Identifier: GPL-3.0-or-later
"""Bragg disks in EMD 1.0 files, as py4DSTEM 0.14 writes them.

Files hold disks in detector pixels beside a calibration. `read_disks` and `bragg_source` apply it
as py4DSTEM does and hand back scattering vectors in 1/Å: qx along lab x (detector axis 0), qy along
lab y; the source reads some scan rows at a time. Groups and entries of EMD trees are read and
written here for others too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Int

from jaxstem.errors import InputError
from jaxstem.files.axes import changed, with_flip_folded
from jaxstem.files.calibration import calibrate_disks, stated_instrument, stated_scan_step
from jaxstem.files.hdf5 import open_hdf5, plain_value, read_lists, stored_value
from jaxstem.files.light import Light
from jaxstem.files.scan import DISK_FIELDS, LARGEST, DiskScan, DiskSource
from jaxstem.files.stored_light import (
    calibrated_detector,
    calibrated_light,
    holds_light,
    read_apertures,
    read_light,
    stored_beam_unseen,
)
from jaxstem.files.units import VOLTAGE_KEY, in_kv, without_angles


def create_emd_group(parent, name: str, kind: str, python_class: str | None):
    group = parent.create_group(name)
    group.attrs["emd_group_type"] = kind
    if python_class:
        group.attrs["python_class"] = python_class
    return group


def write_emd_entry(group, name: str, value) -> None:
    """One entry of an EMD metadata group, with the type by which EMD reads it back."""
    if isinstance(value, np.ndarray) and value.ndim:
        kind = "array"
    elif isinstance(value, bool | np.bool_):
        kind = "bool"
    elif isinstance(value, str):
        value, kind = value.encode(), "string"
    elif isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
    else:
        kind = "number"
    group[name] = value
    group[name].attrs["type"] = kind


def read_disks(path: str | Path) -> DiskScan:
    """Calibrated Bragg disks of an EMD 1.0 file as py4DSTEM 0.14 writes it, all at once.

    Flat arrays `qx`, `qy` [1/Å, lab frame, the direct beam among them] and `intensity`, and
    `offsets` (ny nx + 1): position p = row * nx + column has offsets[p] … offsets[p + 1] - 1.
    Raises InputError as `bragg_source` and its `read` do, and for a file without any disk.
    """
    return bragg_source(path).whole()


def bragg_source(
    path: str | Path, calibration: Mapping | None = None, voltage_kv: float | None = None
) -> DiskSource:
    """Calibrated Bragg disks of an EMD 1.0 file as py4DSTEM 0.14 writes it, read when asked for.

    The vectors are those of py4DSTEM's `braggvectors.cal` after `setcal()`, in 1/Å. Entries of
    `calibration` replace those of the file, `voltage_kv` [kV] its voltage. The counts that jaxstem
    stores beside the disks come along. Raises InputError for a file that is missing, damaged or not
    HDF5, that holds no BraggVectors or several, or whose origin or pixel size is missing or
    unusable; `read` raises it for disks that are not finite.
    """
    with open_hdf5(path) as file:
        group = _bragg_group(file, path)
        root = emd_root(group)
        stated = emd_calibration(root)
        lists = _bragg_lists(group, path)
        name, scan_shape, kind = lists.name, lists.shape, h5py.check_vlen_dtype(lists.dtype)
        voltage_kv = voltage_kv or stated_voltage_kv(root, path)
        apertures = read_apertures(file, scan_shape, path) if holds_light(file) else None
        unseen = stored_beam_unseen(file)
    calibration = without_angles(changed(stated, calibration or {}), voltage_kv)
    scan_step, scan_units = stated_scan_step(calibration)
    # without disks this judges the calibration alone
    nothing = np.zeros(int(np.prod(scan_shape)), np.int64)
    calibrate_disks(np.zeros(0, kind), nothing, scan_shape, calibration, path)

    def of_rows(start: int, stop: int) -> tuple[dict, tuple[int, int]]:
        here = {
            key: value[start:stop] if np.shape(value) == tuple(scan_shape) else value
            for key, value in calibration.items()
        }
        return here, (stop - start, scan_shape[1])

    def read(start: int, stop: int) -> DiskScan:
        with open_hdf5(path) as file:
            disks, counts = read_lists(file[name], start, stop, path)
        _check_finite(disks, counts, start, scan_shape, path)
        here, shape = of_rows(start, stop)
        qx, qy = calibrate_disks(disks, counts, shape, here, path)
        return DiskScan(
            qx=qx.astype(np.float32),
            qy=qy.astype(np.float32),
            intensity=disks["intensity"].astype(np.float32),
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            scan_shape=shape,
            scan_step=scan_step,
            scan_units=scan_units,
            voltage_kv=voltage_kv,
            source=str(path),
        )

    def read_counts(start: int, stop: int) -> Light:
        light = read_light(path, slice(start, stop), scan_shape)
        return calibrated_light(light, apertures, *of_rows(start, stop), str(path)).light

    detector = apertures and calibrated_detector(apertures, calibration, str(path))
    instrument = replace(stated_instrument(calibration, path), beam_unseen=unseen)
    return DiskSource(
        scan_shape,
        scan_step,
        scan_units,
        voltage_kv,
        str(path),
        read,
        instrument,
        detector,
        detector and read_counts,
    )


def emd_attribute(node: h5py.HLObject, name: str) -> str | None:
    """An attribute of a group or dataset as text, None where it is not there."""
    return plain_value(node.attrs.get(name))


def holds_disks(path: str | Path) -> bool:
    """Whether an HDF5 file holds BraggVectors. Raises InputError for a file it cannot read."""
    with open_hdf5(path) as file:
        return bool(_bragg_groups(file))


def _bragg_groups(file: h5py.File) -> list[h5py.Group]:
    found = []

    def collect(name, about):
        if about.type == h5py.h5o.TYPE_GROUP:
            node = file[name]
            if emd_attribute(node, "python_class") == "BraggVectors":
                found.append(node)

    h5py.h5o.visit(file.id, collect, info=True)  # without opening arrays, which takes longest
    return found


def _bragg_group(file: h5py.File, path: str | Path) -> h5py.Group:
    """The only BraggVectors of a file, whatever its name and depth."""
    found = _bragg_groups(file)
    if not found:
        raise InputError(
            f"{path} holds no Bragg vectors; find disks with 'jaxstem detect', or with py4DSTEM's "
            "find_Bragg_disks and save them to EMD 1.0."
        )
    if len(found) > 1:
        names = ", ".join(group.name for group in found)
        raise InputError(f"{path} holds several sets of Bragg vectors ({names}); save one alone.")
    return found[0]


def emd_root(group: h5py.Group) -> h5py.Group:
    """The root of the EMD tree that holds the group; the file itself where none is marked."""
    while group.name != "/" and emd_attribute(group, "emd_group_type") != "root":
        group = group.parent
    return group


def emd_calibration(root: h5py.Group) -> dict:
    """The values and arrays of the calibration of an EMD tree, {} where there is none; a flip of
    the detector apart (`files.axes`).
    """
    group = root.get("metadatabundle/calibration")
    return with_flip_folded(emd_metadata(group)) if isinstance(group, h5py.Group) else {}


def emd_metadata(group: h5py.Group) -> dict:
    """The entries of an EMD metadata group: arrays stay arrays; entries stored as None left out."""
    values = {}
    for key, node in group.items():
        if isinstance(node, h5py.Dataset) and emd_attribute(node, "type") != "None":
            value = stored_value(node)
            values[key] = value if node.shape else plain_value(value)
    return values


def _bragg_lists(group: h5py.Group, path: str | Path) -> h5py.Dataset:
    """The lists of disks of a set of Bragg vectors, in detector pixels, one for each position."""
    dataset = group.get("_v_uncal/data")
    kind = h5py.check_vlen_dtype(dataset.dtype) if isinstance(dataset, h5py.Dataset) else None
    if kind is None or not set(DISK_FIELDS) <= set(kind.names or ()):
        raise InputError(
            f"{path}: {group.name} has no lists of qx, qy and intensity; save the Bragg vectors "
            "again with py4DSTEM 0.14."
        )
    if dataset.ndim != 2:
        raise InputError(
            f"{path}: the Bragg vectors cover {dataset.ndim} scan axes instead of two; reshape "
            "them to (rows, columns) in py4DSTEM and save them again."
        )
    return dataset


def _check_finite(
    disks: np.ndarray,
    counts: Int[np.ndarray, "positions"],
    first_row: int,
    scan_shape: tuple[int, int],
    path: str | Path,
) -> None:
    finite = np.logical_and.reduce([np.abs(disks[name]) < LARGEST for name in DISK_FIELDS])
    if finite.all():
        return
    position = np.searchsorted(np.cumsum(counts), np.argmin(finite), side="right")
    row, column = np.divmod(position + first_row * scan_shape[1], scan_shape[1])
    raise InputError(
        f"{path}: a disk at scan position ({row}, {column}) has a position or intensity that is "
        "not finite; repeat the disk detection."
    )


def stated_voltage_kv(root: h5py.Group, path: str | Path) -> float | None:
    """Accelerating voltage in kV that any metadata of the EMD tree states, or None.

    py4DSTEM has no fixed place for it. Entries are known by name (voltage, beam_energy and the
    like); a unit in the name or the text counts, else numbers from 10,000 up are volts.
    """
    stated = {}

    def collect(name):
        match = VOLTAGE_KEY.fullmatch(name.rsplit("/", 1)[-1])
        node = root[name] if match else None
        if isinstance(node, h5py.Dataset) and node.shape == ():
            if "/metadatabundle/" in node.name:
                value = in_kv(plain_value(stored_value(node)), match.group(2))
                if value is not None:
                    stated[node.name] = value

    root.visit(collect)
    if not stated:
        return None
    values = list(stated.values())
    if max(values) > 1.001 * min(values):
        texts = ", ".join(f"{value:g} kV in {name}" for name, value in stated.items())
        raise InputError(f"{path} states several voltages ({texts}); correct its metadata.")
    return values[0]
