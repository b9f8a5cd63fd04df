# SPDX-License-Identifier: GPL-3.0-or-later
"""Dectris masters (Arina), read with h5py, because RosettaSciIO reads them at once."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxstem.errors import InputError
from jaxstem.files.cube import Cube
from jaxstem.files.hdf5 import open_hdf5, plain_value, stored_value
from jaxstem.files.stack import ALL_FRAMES, Frames, checked_cube, framed
from jaxstem.files.units import in_kv


def dectris_names(file: h5py.File) -> list[str]:
    """The links of a Dectris master to its patterns, in order."""
    group = file.get("entry/data")
    if not isinstance(group, h5py.Group):
        return []
    return sorted(name for name in group if re.fullmatch(r"data_\d+", name))


_COMPANION = "STEM Metadata"
"""What the scan generator writes beside an Arina master: `X.h5` for `X_master.h5`."""


def dectris_cube(
    path: Path,
    scan_shape: tuple[int, int] | None,
    voltage_kv: float | None,
    frames: Frames = ALL_FRAMES,
) -> Cube:
    """The scan of a Dectris master file (Arina), whose patterns lie in files beside it.

    Its shape is that of the file of the scan generator beside it, where there is one, else what the
    master's triggers are. Raises InputError as `framed` does.
    """
    import hdf5plugin  # noqa: F401, registers the detector's compression

    with open_hdf5(path) as file:
        names, parts = dectris_names(file), []
        for name in names:
            try:
                parts.append(file[f"entry/data/{name}"])
            except KeyError:
                link = file.get(f"entry/data/{name}", getlink=True)
                beside = getattr(link, "filename", name)
                raise InputError(
                    f"{path}: its data file {beside} is missing; put it beside the master."
                ) from None
        detector_shape, dtype = parts[0].shape[1:], parts[0].dtype
        if any(part.ndim != 3 or part.shape[1:] != detector_shape for part in parts):
            raise InputError(f"{path}: its data files differ in shape; copy them again.")
        ends = np.cumsum([0, *(len(part) for part in parts)])
        numbers = [
            file.get(f"entry/instrument/detector/detectorSpecific/{name}")
            for name in ("ntrigger", "nimages")
        ]
        stated = tuple(int(stored_value(x)) if isinstance(x, h5py.Dataset) else 0 for x in numbers)
        energy = file.get("entry/instrument/beam/incident_energy")
        if voltage_kv is None and isinstance(energy, h5py.Dataset) and energy.shape == ():
            voltage_kv = in_kv(plain_value(stored_value(energy)), "eV")

    def fetch(_: slice, own: slice) -> np.ndarray:
        start, stop, step = own.indices(int(ends[-1]))
        blocks = []
        with open_hdf5(path) as file:
            for name, low, high in zip(names, ends[:-1], ends[1:], strict=True):
                first, last = max(start, low + (start - low) % step), min(stop, high)
                if first < last:
                    blocks.append(file[f"entry/data/{name}"][first - low : last - low : step])
        return np.concatenate(blocks)[None]

    beside, tension = _companion(path)
    stack = Cube(
        shape=(1, int(ends[-1]), *detector_shape),
        dtype=dtype,
        read=fetch,
        pixel_size=None,
        calibration={},
        scan_step=1.0,
        scan_units="pixels",
        voltage_kv=voltage_kv or tension,
        source=str(path),
        axes="detector axes as the Dectris master has them",
    )
    stated = beside or (stated if min(stated) > 1 else None)
    return checked_cube(framed(stack, stated, scan_shape, frames))


def _companion(path: Path) -> tuple[tuple[int, int] | None, float | None]:
    """Rows and columns, and the voltage [kV], of the file beside an Arina master; None each where
    there is no such file or it does not say.
    """
    beside = path.with_name(path.name.replace("_master", ""))
    if beside == path or not beside.is_file():
        return None, None
    said: dict[str, Any] = {}
    with suppress(InputError), open_hdf5(beside) as file:  # any file may have that name
        said = {name: plain_value(value) for name, value in file[_COMPANION].attrs.items()}
    numbers = {
        name: float(np.ravel(said[name])[0])
        for name in ("NumPixelsX", "NumPixelsY", "High Tension")
        if name in said and np.size(said[name]) == 1 and np.asarray(said[name]).dtype.kind in "iuf"
    }
    sides = [numbers.get(name, 0.0) for name in ("NumPixelsY", "NumPixelsX")]
    shape = tuple(map(int, sides)) if all(1 <= side < 1e6 for side in sides) else None
    return shape, in_kv(numbers.get("High Tension"), "V")
