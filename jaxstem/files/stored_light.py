# SPDX-License-Identifier: GPL-3.0-or-later
"""The counts of a scan's patterns beside its disks, in one file.

A group of its own, which py4DSTEM passes over. The bytes of `files.light` are stored less those of
a pattern such as most are, and halved, for small numbers are what compresses: a kilobyte is left of
a pattern of 128 × 128 pixels. All is in detector pixels, so that a calibration which is changed
later places counts and disks alike. docs/file-formats.md has the layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.ndimage import binary_dilation

from jaxstem.errors import InputError
from jaxstem.files.calibration import axes_matrix
from jaxstem.files.hdf5 import open_hdf5
from jaxstem.files.light import Apertures, Detector, Light, ScanLight

_UNSEEN = "beam_unseen"
"""Attribute that is there where the direct beam is hidden or cut."""

_GROUP, _VERSION = "jaxstem_light", 1

_TOGETHER = 64
"""Patterns that are compressed together."""

_ENOUGH = 512
"""Patterns from which that one is made which is such as most are."""

_COARSER = 2
"""How much coarser than in memory the steps are in a file."""

_NUMBERS = ("apart", "radius", "radius_step", "block", "found")

_REMEDY = "find the disks again with 'jaxstem detect'"


def calibrated_light(
    light: Light,
    apertures: Apertures,
    calibration: Mapping[str, Any],
    scan_shape: tuple[int, int],
    source: str,
) -> ScanLight | None:
    """The counts that were kept, with the place of every scattering vector.

    `calibration` of `source`, the origin among it, as `calibrate_disks` takes it. None where its
    ellipse differs from position to position.
    """
    detector = calibrated_detector(apertures, calibration, source)
    if detector is None:
        return None
    n = int(np.prod(scan_shape))
    origin = [np.broadcast_to(np.ravel(calibration[name]), n) for name in ("qx0", "qy0")]
    centre = np.stack(origin, -1) / apertures.apart
    return ScanLight(light._replace(centre=centre.astype(np.float32)), detector)


def calibrated_detector(
    apertures: Apertures, calibration: Mapping[str, Any], source: str
) -> Detector | None:
    """The part that all patterns share; None where the ellipse differs between positions."""
    if any(np.ndim(calibration.get(name, 0)) for name in ("a", "b", "theta")):
        return None
    of_pixels = axes_matrix(calibration, source)
    return Detector(
        background=apertures.background,
        radius_step=np.float32(apertures.radius_step),
        seen=apertures.seen,
        to_places=(np.linalg.inv(of_pixels) / apertures.apart).astype(np.float32),
        block=np.float32(apertures.block),
        disk=np.float32(apertures.radius * np.sqrt(abs(np.linalg.det(of_pixels)))),
        found=np.float32(apertures.found),
    )


def write_light(
    file: h5py.File, light: Light, apertures: Apertures, beam_unseen: bool = False
) -> None:
    """Store the counts beside the disks that an open file holds, compressed, and whether those of
    the direct beam cannot be told.
    """
    n = len(light.sums)
    some = np.unique(np.linspace(0, n - 1, min(n, _ENOUGH)).round().astype(int))
    usual = np.median(light.sums[some], axis=0).astype(np.uint8)
    group = file.create_group(_GROUP)
    group.attrs["version"] = _VERSION
    if beam_unseen:
        group.attrs[_UNSEEN] = True
    group.attrs.update({name: float(getattr(apertures, name)) for name in _NUMBERS})
    for name, values in (
        ("background", np.asarray(apertures.background, np.float32)),
        ("seen", np.asarray(apertures.seen)),
        ("usual", usual),
    ):
        group[name] = values
    # of places that no counts are asked for so much as of most patterns will do
    needed = binary_dilation(apertures.seen, iterations=2)
    every = [-(-n // m) for n, m in zip(needed.shape, usual.shape, strict=True)]
    needed = needed[:: every[0], :: every[1]]
    tables = [
        group.create_dataset(
            name, x.shape, kind, chunks=(min(n, _TOGETHER), *x.shape[1:]), compression=4
        )
        for name, kind, x in (("sums", np.int8, light.sums), ("factor", np.uint8, light.factor))
    ]
    for start in range(0, n, _TOGETHER):
        here = slice(start, start + _TOGETHER)
        apart = light.sums[here].astype(np.int16) - usual
        tables[0][here] = np.where(needed, np.round(apart / _COARSER), 0)
        tables[1][here] = light.factor[here]


def holds_light(file: h5py.File) -> bool:
    """Whether counts are stored beside the disks of an open file."""
    return isinstance(file.get(_GROUP), h5py.Group)


def stored_beam_unseen(file: h5py.File) -> bool:
    """Whether the counts of the direct beam, which an open file may list, cannot be told."""
    return holds_light(file) and bool(np.any(file[_GROUP].attrs.get(_UNSEEN, False)))


def read_apertures(file: h5py.File, scan_shape: tuple[int, int], path: str | Path) -> Apertures:
    """What the counts of an open file share.

    Raises InputError for another version, and for parts that do not fit together or the scan.
    """
    group = file[_GROUP]
    if group.attrs.get("version") != _VERSION:
        raise InputError(
            f"{path} holds counts of layout version {group.attrs.get('version')}, and this "
            f"jaxstem reads version {_VERSION}; update jaxstem."
        )
    problem = _problem(group, scan_shape)
    if problem:
        raise InputError(f"{path}: {problem}; {_REMEDY}.")
    numbers = {name: float(group.attrs[name]) for name in _NUMBERS}
    return Apertures(
        background=group["background"][()].astype(np.float32, copy=False),
        seen=group["seen"][()].astype(bool, copy=False),
        **numbers,
    )


def read_light(path: str | Path, rows: slice, scan_shape: tuple[int, int]) -> Light:
    """The counts of some scan rows; where the direct beam lies a calibration says.

    Raises InputError for a file that is damaged.
    """
    here = slice(rows.start * scan_shape[1], rows.stop * scan_shape[1])
    with open_hdf5(path) as file:
        group = file[_GROUP]
        apart = group["sums"][here].astype(np.int16)
        sums = np.clip(group["usual"][()] + _COARSER * apart, 0, 255).astype(np.uint8)
        factor = group["factor"][here]
    return Light(sums, factor, np.full((len(sums), 2), np.nan, np.float32))


def _problem(group: h5py.Group, scan_shape: tuple[int, int]) -> str | None:
    """What is missing, or does not fit, or None."""
    kinds = {"background": (1, "f"), "seen": (2, "b"), "usual": (2, "u")}
    kinds |= {"sums": (3, "i"), "factor": (3, "u")}
    for name, (ndim, kind) in kinds.items():
        dataset = group.get(name)
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim != ndim:
            return f"'{name}' of its counts is missing"
        if dataset.dtype.kind != kind or kind in "iu" and dataset.dtype.itemsize != 1:
            return f"'{name}' of its counts is of type {dataset.dtype}"
    for name in _NUMBERS:
        stated = np.asarray(group.attrs.get(name, np.nan))
        if stated.shape or stated.dtype.kind not in "iuf" or not 0 < stated < 1e6:
            return f"'{name}' of its counts is {stated.tolist()!r} and not a positive number"
    n, *kept = group["sums"].shape
    seen, factor = group["seen"].shape, group["factor"].shape
    halves = tuple(-(-side // 2) for side in seen)
    if tuple(kept) not in (seen, halves) or group["usual"].shape != tuple(kept) or min(seen) < 8:
        return f"counts at {kept} places do not fit a detector of {seen}"
    if n != int(np.prod(scan_shape)) or factor[0] != n or min(factor) < 1:
        return f"it holds the counts of {n} positions and not of {int(np.prod(scan_shape))}"
    if not len(group["background"]) or not np.isfinite(group["background"][()]).all():
        return "the background of its counts is not finite"
    return None
