# SPDX-License-Identifier: GPL-3.0-or-later
"""pyxem's `DiffractionVectors`, stored by HyperSpy: calibrated disks, one array a position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxstem.errors import InputError
from jaxstem.files.csv import flat_scan
from jaxstem.files.hdf5 import open_hdf5
from jaxstem.files.scan import LARGEST, DiskScan
from jaxstem.files.units import in_inverse_angstroms


def holds_vectors(path: str | Path) -> bool:
    """Whether a HyperSpy file holds pyxem's DiffractionVectors. Raises InputError for a file that
    cannot be read.
    """
    with open_hdf5(path) as file:
        experiments = file.get("Experiments")
        if file.attrs.get("file_format") != "HyperSpy" or not isinstance(experiments, h5py.Group):
            return False
        signals = [
            group.get("metadata/Signal")
            for group in experiments.values()
            if isinstance(group, h5py.Group)
        ]
        types = [signal.attrs.get("signal_type") for signal in signals if signal is not None]
        return any(str(kind).startswith("diffraction_vectors") for kind in types)


def read_vectors(path: str | Path) -> DiskScan:
    """The disks of a `.hspy` file with pyxem's DiffractionVectors, as `get_diffraction_vectors`
    makes them: column 0 along the detector's rows (our qx), column 1 along its columns (qy),
    centred and in 1/Å or 1/nm, and an intensity.

    Raises InputError for a file that is missing or damaged, that holds no such vectors or several
    sets, or vectors without usable units or intensities.
    """
    path = Path(path)
    if not holds_vectors(path):
        raise InputError(f"{path} holds no DiffractionVectors; save them with pyxem.")
    from rsciio.hspy import file_reader

    with open_hdf5(path, lists=True):
        found = [signal for signal in file_reader(str(path)) if _is_vectors(signal)]
    if len(found) > 1:
        raise InputError(f"{path} holds {len(found)} sets of DiffractionVectors; save one alone.")
    signal = found[0]
    data, about = signal["data"], signal["metadata"].get("VectorMetadata", {})
    if data.ndim != 2 or data.dtype != object:
        raise InputError(
            f"{path}: the vectors cover {data.ndim} scan axes instead of two; save those of a scan."
        )
    names = [str(name) for name in _listed(about.get("column_names"))]
    if "intensity" not in names[2:]:
        raise InputError(
            f"{path}: the vectors have no intensities; make them in pyxem with "
            "get_diffraction_vectors(get_intensity=True)."
        )
    units = [str(unit) for unit in _listed(about.get("units"))][:2]
    factors = [in_inverse_angstroms(unit) for unit in units]
    if len(factors) != 2 or None in factors:
        raise InputError(
            f"{path}: the vectors are in '{', '.join(units)}' and not in 1/Å; calibrate the signal "
            "in pyxem before the vectors are found."
        )
    lists = [np.asarray(here, np.float64).reshape(-1, len(names)) for here in data.ravel()]
    disks = np.concatenate(lists)
    used = disks[:, [0, 1, names.index("intensity")]]
    if not (np.abs(used) < LARGEST).all():
        raise InputError(f"{path}: a vector is not finite; repeat the disk detection.")
    step = signal["axes"][-1]
    known = isinstance(step.get("units"), str) and step["units"] not in ("px", "<undefined>", "")
    known = known and 0 < float(step["scale"]) < np.inf
    energy = signal["metadata"].get("Acquisition_instrument", {}).get("TEM", {}).get("beam_energy")
    return flat_scan(
        np.repeat(np.arange(data.size), [len(here) for here in lists]),
        used[:, :2] * np.array(factors),
        used[:, 2],
        data.shape,
        float(step["scale"]) if known else 1.0,
        step["units"] if known else "pixels",
        float(energy) if energy else None,
        path,
    )


def _is_vectors(signal: dict[str, Any]) -> bool:
    kind = signal["metadata"].get("Signal", {}).get("signal_type", "")
    return str(kind).startswith("diffraction_vectors")


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple | np.ndarray) else []
