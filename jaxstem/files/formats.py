# SPDX-License-Identifier: GPL-3.0-or-later
"""Which format a file of raw patterns has, by its name and by what it holds."""

from __future__ import annotations

from pathlib import Path

import h5py

from jaxstem.files.dectris import dectris_names
from jaxstem.files.hdf5 import open_hdf5

READERS = {
    ".blo": "blockfile",
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".hspy": "hspy",
    ".mib": "quantumdetector",
    ".mrc": "mrc",
    ".mrcs": "mrc",
    ".png": "picture",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".tvips": "tvips",
    ".xml": "empad",
    ".zarr": "zarr",
    ".zspy": "zspy",
}
"""The reader for each suffix: RosettaSciIO's of that name, or one of `pictures.py`."""


def format_of(path: str | Path) -> str | None:
    """Who reads a raw file: one of `READERS`, "dectris", "emd", or None for another HDF5 file.

    Raises InputError for a file that should be HDF5 and cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".raw":
        return "empad"
    if suffix == ".zarr" and (path / "Experiments").is_dir():  # as HyperSpy lays it out
        return "zspy"
    if suffix in READERS:
        return READERS[suffix]
    with open_hdf5(path) as file:
        if file.attrs.get("file_format") == "HyperSpy":
            return "hspy"
        if isinstance(file.get("Data/Image"), h5py.Group):
            return "emd"
        if dectris_names(file):
            return "dectris"
    return None


def check_format(path: str | Path) -> None:
    """Raise InputError for a file that no reader of scans can read, disks or patterns, as the
    reader would; jax is not loaded for it.
    """
    if Path(path).suffix.lower() != ".csv":
        format_of(path)
