# SPDX-License-Identifier: GPL-3.0-or-later
"""From detector pixels to scattering vectors in 1/Å, by a calibration in py4DSTEM's terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxstem.errors import InputError, NotStated
from jaxstem.files.axes import FLIPS, axes_ratio, stated_axes, turned
from jaxstem.files.hdf5 import is_number
from jaxstem.files.scan import LARGEST, Instrument
from jaxstem.files.units import angle_in_inverse_angstroms, in_inverse_angstroms

_RECALIBRATE = "calibrate it in py4DSTEM and save it again"


def calibrate_disks(
    disks: np.ndarray,
    counts: Int[np.ndarray, "positions"],
    scan_shape: tuple[int, int],
    calibration: dict,
    path: str | Path,
) -> tuple[Float[np.ndarray, "total"], Float[np.ndarray, "total"]]:
    """(qx, qy) in 1/Å from detector pixels, in the order of py4DSTEM 0.14's `braggvectors.cal`.

    1. The origin (`qx0`, `qy0`: a number, or one for each position) is subtracted.
    2. Ellipse `a`, `b`, `theta` (rad, from the qx axis): the component along theta times b/a.
    3. The pixel size.
    4. `QR_rotation` (rad): with `QR_flip` qx and qy are exchanged first, then the vectors are
       turned by the angle from qx to qy. Without a rotation stored an exchange has no effect.
       Before both, `Q_flip` "rows" or "columns", which py4DSTEM does not know, reverses qx or qy.
    """

    def each_disk(name):
        value = calibration[name]
        if np.shape(value) not in [(), tuple(scan_shape)]:
            raise InputError(
                f"{path}: the calibration's {name} has shape {np.shape(value)} but the scan "
                f"{tuple(scan_shape)}; {_RECALIBRATE}."
            )
        values = np.asarray(value)
        used = values if values.ndim == 0 else values.ravel()[counts > 0]
        if values.dtype.kind not in "iuf" or not np.isfinite(used).all():
            raise InputError(f"{path}: the calibration's {name} is not finite; {_RECALIBRATE}.")
        return np.repeat(values.ravel(), counts) if values.ndim else values.astype(np.float64)

    def number(name):
        value = each_disk(name)
        if value.ndim:
            raise InputError(
                f"{path}: the calibration's {name} must be one number; {_RECALIBRATE}."
            )
        return float(value)

    if "qx0" not in calibration or "qy0" not in calibration:
        raise InputError(
            f"{path} has no origin of the diffraction patterns; fit it in py4DSTEM "
            "(braggvectors.fit_origin) and save it again."
        )
    scale = stated_pixel_size(calibration, path)
    qx = disks["qx"].astype(np.float64) - each_disk("qx0")
    qy = disks["qy"].astype(np.float64) - each_disk("qy0")
    if {"a", "b", "theta"} <= calibration.keys():
        a, b, theta = each_disk("a"), each_disk("b"), each_disk("theta")
        if np.any(a <= 0) or np.any(b <= 0):
            raise InputError(f"{path}: the ellipse's axes are not positive; {_RECALIBRATE}.")
        cos, sin = np.cos(theta), np.sin(theta)
        excess = (b / a - 1) * (qx * cos + qy * sin)
        qx, qy = qx + excess * cos, qy + excess * sin
    qx, qy = qx * scale, qy * scale
    if "QR_rotation" in calibration:
        number("QR_rotation")
    if np.size(calibration.get("QR_flip")) != 1:
        raise InputError(
            f"{path}: the calibration's QR_flip must be true or false; {_RECALIBRATE}."
        )
    flip = str(calibration.get("Q_flip", "none"))
    if flip not in FLIPS:
        raise InputError(
            f"{path}: the calibration's Q_flip is {flip!r}; set it to 'rows', 'columns' or 'none'."
        )
    qx, qy = turned(qx, qy, calibration)
    if not all((np.abs(values) < LARGEST).all() for values in (qx, qy)):
        raise InputError(
            f"{path}: the calibration takes disks to places that are no usable numbers; "
            f"{_RECALIBRATE}."
        )
    return qx, qy


def axes_matrix(calibration: Mapping[str, Any], path: str | Path) -> Float[np.ndarray, "2 2"]:
    """What takes a step of one pixel along rows and columns to 1/Å in the lab's axes.

    Raises InputError as `calibrate_disks` does.
    """
    steps = np.rec.fromarrays([np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])], names="qx,qy")
    about = {**calibration, "qx0": 0.0, "qy0": 0.0}
    qx, qy = calibrate_disks(steps, np.array([3]), (1, 1), about, path)
    return np.array([qx[1:] - qx[0], qy[1:] - qy[0]])


def stated_scan_step(calibration: dict) -> tuple[float, str]:
    """Distance of neighbouring positions and its unit; (1.0, "pixels") where none is stated."""
    step = calibration.get("R_pixel_size")
    if is_number(step) and np.isfinite(step) and step > 0:
        units = calibration.get("R_pixel_units")
        return float(step), units if isinstance(units, str) and units else "pixels"
    return 1.0, "pixels"


def missing_scale(units: str | None) -> dict[str, Any]:
    """What has to be given, as `NotStated` takes it, where a detector's pixels are in such units:
    for an angle the voltage, else the size.
    """
    if angle_in_inverse_angstroms(str(units), 300.0) is not None:
        what = f"the voltage (its pixel size is in {units})"
        return {"what": what, "option": "voltage_kv", "stand_in": 300.0}
    stated = f" (it is in '{units}')" if units else ""
    what = f"the detector's pixel size in 1/Å{stated}"
    return {"what": what, "option": "pixel_size", "stand_in": 0.01}


def stated_pixel_size(calibration: dict, path: str | Path) -> float:
    """Size of a detector pixel in 1/Å."""
    units = str(calibration.get("Q_pixel_units", "pixels"))
    factor = in_inverse_angstroms(units)
    remedy = (
        "give --pixel-size in 1/Å, or set calibration.set_Q_pixel_size(size) and "
        "set_Q_pixel_units('A^-1') in py4DSTEM and save it again"
    )
    if factor is None:
        raise NotStated(
            f"{path}: the detector's pixel size is in '{units}' and not in 1/Å; {remedy}.",
            **missing_scale(units),
        )
    size = calibration.get("Q_pixel_size")
    if not is_number(size) or not np.isfinite(size) or size <= 0:
        raise InputError(
            f"{path}: the detector's pixel size is {size} and not a positive number; {remedy}."
        )
    return factor * size


def stated_instrument(calibration: Mapping, path: str | Path) -> Instrument:
    """What a calibration in py4DSTEM's terms says of detector and beam."""
    origin = [calibration.get(name) for name in ("qx0", "qy0")]
    known = all(value is not None for value in origin)
    return Instrument(
        pixel_size=mean_pixel_size(stated_pixel_size(calibration, path), calibration),
        centre=tuple(float(np.nanmean(value)) for value in origin) if known else None,
        **stated_axes(calibration),
    )


def mean_pixel_size(pixel_size: float, calibration: Mapping[str, Any]) -> float:
    """Geometric mean over the directions [1/Å] of a pixel size of py4DSTEM's terms, which is that
    across the direction in which rings are longest.
    """
    return pixel_size / math.sqrt(axes_ratio(calibration))
