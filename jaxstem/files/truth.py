# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scan really holds, where that is known: for scoring maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float, Int

from jaxstem.errors import InputError
from jaxstem.files.hdf5 import numeric_array, open_hdf5


@dataclass(frozen=True)
class Truth:
    """What a scan really holds, over its positions; orientation NaN where there is no crystal.

    boundary_weight is 0 inside a grain; grain is -1 and thickness (Å) NaN where not known.
    """

    orientation: Float[np.ndarray, "*scan 3 3"]
    phase: np.ndarray
    boundary_weight: Float[np.ndarray, "*scan"]
    grain: Int[np.ndarray, "*scan"]
    thickness: Float[np.ndarray, "*scan"]


def read_truth(path: str | Path) -> Truth:
    """The known orientations and phases of a scan.

    Needs the datasets `orientation` (…, 3, 3) and `phase` (…); takes `boundary_weight`, `grain` and
    `thickness` (Å) where present. Raises InputError where they are missing or of unequal shape.
    """
    with open_hdf5(path) as file:
        for name in ("orientation", "phase"):
            if not isinstance(file.get(name), h5py.Dataset):
                raise InputError(
                    f"{path} has no dataset '{name}'; give a truth file with 'orientation' and "
                    "'phase' over the scan."
                )
        orientation = numeric_array(file["orientation"], path).astype(np.float64)
        scan_shape = orientation.shape[:-2]
        if orientation.shape[-2:] != (3, 3):
            raise InputError(
                f"{path}: 'orientation' has shape {orientation.shape}; it must be (…, 3, 3)."
            )
        phase = np.asarray(file["phase"][()])
        if phase.dtype.kind not in "SO":
            raise InputError(f"{path}: 'phase' holds no strings; give the phases' names.")
        optional = {
            name: numeric_array(file[name], path).astype(dtype)
            if name in file
            else np.full(scan_shape, absent, dtype=dtype)
            for name, absent, dtype in [
                ("boundary_weight", 0.0, np.float64),
                ("grain", -1, np.int64),
                ("thickness", np.nan, np.float64),
            ]
        }
    for name, values in {"phase": phase, **optional}.items():
        if values.shape != scan_shape:
            raise InputError(
                f"{path}: '{name}' has shape {values.shape} but the orientations cover "
                f"{scan_shape}; give one value a position."
            )
    names = [p.decode() if isinstance(p, bytes) else str(p) for p in phase.ravel()]
    return Truth(orientation, np.array(names, dtype=np.str_).reshape(scan_shape), **optional)
