# SPDX-License-Identifier: GPL-3.0-or-later
"""Orientation maps in files (layout: docs/file-formats.md), written whole or row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxstem.crystal.cell import Crystal
from jaxstem.errors import InputError
from jaxstem.files.hdf5 import (
    is_number,
    numeric_array,
    open_hdf5,
    plain_value,
    read_settings,
    stored_value,
    write_settings,
)
from jaxstem.files.hdf5_writing import create_hdf5
from jaxstem.files.map_schema import DERIVED, LATER, MAP_DATASETS, SINGLE, MapDataset
from jaxstem.files.orientation_map import NO_CRYSTAL, OrientationMap, ambiguous_by_180
from jaxstem.runtime.paths import atomic_path
from jaxstem.version import __version__

_MAP_FORMAT = "jaxstem-map"
MAP_VERSION = 1

_ROUNDING = 1e-3
"""By how much a probability may lie outside 0…1."""


def write_map(path: str | Path, result: OrientationMap, overwrite: bool = False) -> None:
    """Store a map (layout: docs/file-formats.md).

    Raises InputError where the file exists and `overwrite` is False, or cannot be written, and
    ValueError for a map whose arrays do not fit together.
    """
    arrays = {
        name: np.asarray(getattr(result, name), dataset.dtype)
        for name, dataset in _datasets(result.single_phase is not None).items()
    }
    problem = _map_problem(arrays, result.phase_names)
    if problem or len(result.crystals) != len(result.phase_names):
        raise ValueError(problem or "a map needs one crystal for each phase name")
    about = MapHeader(
        result.phase.shape,
        result.phase_names,
        result.crystals,
        result.scan_step,
        result.scan_units,
        result.attributes,
        result.settings,
        result.single_phase is not None,
    )
    with map_writer(path, about, overwrite) as write:
        write(0, arrays)


@dataclass(frozen=True)
class MapHeader:
    """What a map says besides its arrays, as in `OrientationMap`; keeps_single: it has what each
    pattern says alone, too.
    """

    scan_shape: tuple[int, int]
    phase_names: tuple[str, ...]
    crystals: tuple[Crystal, ...]
    scan_step: float
    scan_units: str
    attributes: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    keeps_single: bool = False


@contextmanager
def map_writer(
    path: str | Path, header: MapHeader, overwrite: bool = False
) -> Iterator[Callable[[int, Mapping[str, np.ndarray]], None]]:
    """Write a map some scan rows at a time: gives `write(first_row, arrays)`, arrays by the names
    of `MAP_DATASETS` and `SINGLE`, all or some, and of shape (rows, nx, ...).

    The file appears under its name when the block ends without an error; by then every row of each
    must have been written. Raises InputError as `atomic_path` does.
    """
    with atomic_path(path, overwrite) as temporary, create_hdf5(temporary) as (file, check):
        file.attrs.update({"jaxstem_version": __version__, **header.attributes})
        file.attrs.update({"format": _MAP_FORMAT, "version": MAP_VERSION})
        file.attrs.update({"scan_step": header.scan_step, "scan_units": header.scan_units})
        stored = {
            name: file.create_dataset(
                dataset.location, dataset.shape(*header.scan_shape), dataset.dtype
            )
            for name, dataset in (_datasets(header.keeps_single) | DERIVED).items()
        }
        names = list(header.phase_names)
        file.create_dataset("phase_names", data=names, dtype=h5py.string_dtype())
        for number, crystal in enumerate(header.crystals):
            group = file.create_group(f"phases/{number}")
            for key, value in crystal.to_dict().items():
                group[key] = value
        write_settings(file.create_group("settings"), header.settings)

        def write(first_row: int, arrays: Mapping[str, np.ndarray]) -> None:
            told = ("phase", "confidence", "confidence_mod180")
            if all(name in arrays for name in told):
                ambiguous = ambiguous_by_180(*(arrays[name] for name in told))
                arrays = {**arrays, "ambiguous_180": ambiguous}
            for name, values in arrays.items():
                stored[name][first_row : first_row + len(values)] = values
            check()

        yield write


def _datasets(keeps_single: bool) -> dict[str, MapDataset]:
    return dict(MAP_DATASETS) | (dict(SINGLE) if keeps_single else {})


def read_map(path: str | Path, every: int = 1) -> OrientationMap:
    """A map that `write_map` stored; of its rows and columns only each `every`-th.

    Raises InputError for a file that is missing, damaged, no jaxstem map, or made by a newer
    jaxstem.
    """
    with open_hdf5(path) as file:
        attributes = {name: plain_value(value) for name, value in file.attrs.items()}
        if attributes.pop("format", None) != _MAP_FORMAT:
            raise InputError(f"{path} is not a jaxstem map; give a file that 'jaxstem map' wrote.")
        version = attributes.pop("version", None)
        if version != MAP_VERSION:
            raise InputError(
                f"{path} is a jaxstem map of layout version {version}, and this jaxstem reads "
                f"version {MAP_VERSION}; update jaxstem."
            )
        locations = [dataset.location for dataset in MAP_DATASETS.values()]
        # maps of before counts judged
        younger = [dataset.location for dataset in LATER.values()]
        missing = [
            x for x in [*locations, "phase_names", "phases"] if x not in file and x not in younger
        ]
        if missing:
            raise InputError(
                f"{path} lacks '{missing[0]}' of a jaxstem map; make it again with 'jaxstem map'."
            )
        arrays = {
            name: numeric_array(file[dataset.location], path, every).astype(
                dataset.dtype, copy=False
            )
            for name, dataset in _datasets("single" in file).items()
            if dataset.location in file
        }
        shape = arrays["phase"].shape
        for name, dataset in LATER.items():
            arrays.setdefault(name, np.full(dataset.shape(*shape), np.nan, dataset.dtype))
        phase_names = tuple(plain_value(name) for name in stored_value(file["phase_names"]))
        crystals = tuple(
            Crystal.from_dict(
                {key: plain_value(stored_value(value)) for key, value in group.items()}
            )
            for group in (file[f"phases/{number}"] for number in range(len(phase_names)))
        )
        settings = read_settings(file["settings"]) if "settings" in file else {}
    scan_step = attributes.pop("scan_step", 1.0)
    problem = _map_problem(arrays, phase_names)
    if not is_number(scan_step) or not 0 < scan_step < np.inf:
        problem = f"'scan_step' is {scan_step!r} and not a positive number"
    if problem:
        raise InputError(f"{path}: {problem}; make it again with 'jaxstem map'.")
    try:
        return OrientationMap(
            **arrays,
            phase_names=phase_names,
            crystals=crystals,
            scan_step=every * float(scan_step),
            scan_units=str(attributes.pop("scan_units", "pixels")),
            attributes=attributes,
            settings=settings,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _map_problem(arrays: dict[str, np.ndarray], phase_names: tuple[str, ...]) -> str | None:
    """What is wrong with the arrays of a map, or None."""
    scan_shape = arrays["phase"].shape
    if len(scan_shape) != 2:
        return f"'phase' has {len(scan_shape)} axes instead of the scan's two"
    if 0 in scan_shape:
        return "it holds no position"
    if not all(isinstance(name, str) for name in phase_names):
        return "'phase_names' holds something else than names"
    for name, values in arrays.items():
        expected = _datasets(True)[name].shape(*scan_shape)
        if values.shape != expected:
            return f"'{name}' has shape {values.shape} instead of {expected}"
    for name in ("phase", "second_phase", "single_phase"):
        values = arrays.get(name, arrays["phase"])
        if values.size and (values.min() < NO_CRYSTAL or values.max() >= len(phase_names)):
            return f"'{name}' has values outside -2…{len(phase_names) - 1}"
    for name in ("confidence", "confidence_mod180", "phase_confidence", "single_confidence"):
        # NaN where not known
        if np.any(np.abs(arrays.get(name, arrays["confidence"]) - 0.5) > 0.5 + _ROUNDING):
            return f"'{name}' has values outside 0…1"
    return None
