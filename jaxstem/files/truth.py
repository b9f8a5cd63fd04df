# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scan really holds, where that is known: for scoring maps.

A `Truth` is checked when it is made, and nowhere else: whoever scores relies on its orientations
being rotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float, Int

from jaxstem.errors import InputError
from jaxstem.files.hdf5 import numeric_array, open_hdf5, stored_value
from jaxstem.orientation.rotations import rotation_fault


@dataclass(frozen=True)
class Truth:
    """What a scan really holds, over its positions; orientation NaN where there is no crystal.

    boundary_weight is 0 inside a grain; grain is -1 and thickness (Å) NaN where not known. Raises
    InputError for orientations that are no rotation matrices.
    """

    orientation: Float[np.ndarray, "*scan 3 3"]
    phase: np.ndarray
    boundary_weight: Float[np.ndarray, "*scan"]
    grain: Int[np.ndarray, "*scan"]
    thickness: Float[np.ndarray, "*scan"]

    def __post_init__(self) -> None:
        known = self.orientation[~np.isnan(self.orientation).all((-2, -1))]
        if fault := rotation_fault(known, "the truth's {} orientations"):
            raise InputError(
                f"{fault}; give orthonormal matrices of determinant 1, and NaN where there is no "
                "crystal."
            )


def read_truth(path: str | Path) -> Truth:
    """The known orientations and phases of a scan.

    Needs the datasets `orientation` (…, 3, 3) and `phase` (…); takes `boundary_weight`, `grain` and
    `thickness` (Å) where present. Raises InputError where they are missing or of unequal shape, and
    for orientations that are no rotation matrices.
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
        phase = np.asarray(stored_value(file["phase"]))
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
    names = [p.decode(errors="replace") if isinstance(p, bytes) else str(p) for p in phase.ravel()]
    names = np.array(names, dtype=np.str_).reshape(scan_shape)
    try:
        return Truth(orientation, names, **optional)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
