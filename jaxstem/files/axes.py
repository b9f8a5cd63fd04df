# SPDX-License-Identifier: GPL-3.0-or-later
"""From a detector's axes to those of the lab, in the terms of a calibration.

A pattern's vectors (qx, qy) from the direct beam, along detector rows and columns, become those of
the lab in four steps, all about the beam, in this order:

1. *Ellipse* `a`, `b`, `theta`: the component along `theta`, where rings are longest, times b/a.
2. *Flip* `Q_flip`: "rows" turns the image of the detector upside down, qx to -qx; "columns" turns
   left and right, qy to -qy.
3. *Transposition* `QR_flip`: rows become columns, qx and qy are exchanged.
4. *Rotation* `QR_rotation`: by the angle from qx towards qy.

py4DSTEM knows all but the flip, and needs none: reversed rows are exchanged axes turned by 90°, and
so on. A file holds the flip in that form (`with_flip_folded`), so that py4DSTEM places disks alike,
and beside it `Q_flip`, so that here the three are told apart again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxstem.files.hdf5 import is_number
from jaxstem.files.light import Detector
from jaxstem.files.scan import BY_FILE, DiskScan, DiskSource, Instrument

FLIPS = ("none", "rows", "columns")
"""What can be reversed of a detector; both are a rotation by 180°."""


def turned(
    qx: Float[np.ndarray, " n"], qy: Float[np.ndarray, " n"], calibration: Mapping[str, Any]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(qx, qy) after flip, transposition and rotation (steps 2 to 4).

    Without a rotation stored `QR_flip` has no effect, as in py4DSTEM.
    """
    flip = calibration.get("Q_flip", "none")
    if flip == "rows":
        qx = -qx
    elif flip == "columns":
        qy = -qy
    if "QR_rotation" in calibration:
        angle = float(calibration["QR_rotation"])
        if _exchanged(calibration):
            qx, qy = qy, qx
        cos, sin = np.cos(angle), np.sin(angle)
        qx, qy = cos * qx - sin * qy, sin * qx + cos * qy
    return qx, qy


def _exchanged(calibration: Mapping[str, Any]) -> bool:
    """Whether qx and qy are exchanged."""
    stated = np.ravel(calibration.get("QR_flip"))
    return "QR_rotation" in calibration and len(stated) == 1 and bool(stated[0])


def with_flip_folded(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the flip as a part of `QR_flip` and `QR_rotation`, as files hold it, or, of
    what a file holds, with the flip apart: the one undoes the other.

    With T the exchange of the axes and R(w) the rotation by w, reversed rows are R(90°) T and
    reversed columns R(-90°) T.
    """
    flip, turn = str(calibration.get("Q_flip", "none")), calibration.get("QR_rotation", 0.0)
    if flip not in FLIPS[1:] or not is_number(turn):
        return dict(calibration)
    transposed = _exchanged(calibration)
    turn += math.copysign(math.pi / 2, 1 if (flip == "rows") != transposed else -1)
    folded = {**calibration, "QR_flip": not transposed, "QR_rotation": turn}
    if transposed and abs(turn) < 1e-9:  # neither, so that none is stated
        del folded["QR_flip"], folded["QR_rotation"]
    return folded


def changed(stated: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A calibration with the entries of another in the place of its own.

    A transposition that is told goes with a rotation by 0 where none is stated. `changes` may have
    `Q_ellipse`, the ratio of a ring's axes and the direction [rad] of the longer one, for an
    ellipse that leaves the size of a pixel what it is on average over directions (the geometric
    mean of both axes, as `jaxstem calibrate` measures it).
    """
    entries = {**stated, **changes}
    if "QR_flip" in changes:
        entries.setdefault("QR_rotation", 0.0)
    ellipse = entries.pop("Q_ellipse", None)
    if ellipse is not None:
        ratio, theta = ellipse
        size = entries.get("Q_pixel_size")
        if is_number(size):
            before = 1.0 if "Q_pixel_size" in changes else axes_ratio(stated)
            entries["Q_pixel_size"] = size * math.sqrt(ratio / before)
        entries |= {"a": math.sqrt(ratio), "b": 1.0 / math.sqrt(ratio), "theta": theta}
    return entries


def axes_ratio(calibration: Mapping[str, Any]) -> float:
    """By how much rings are longer along `theta` than across, on average over the scan; 1 where no
    ellipse is stated or its axes are no numbers.
    """
    if not {"a", "b", "theta"} <= calibration.keys():
        return 1.0
    with np.errstate(all="ignore"):
        try:
            ratio = np.median(np.asarray(calibration["a"]) / np.asarray(calibration["b"]))
        except (TypeError, ValueError):
            return 1.0
    return float(ratio) if np.isfinite(ratio) and ratio > 0 else 1.0


def stated_axes(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """What a calibration says of the axes, as `Instrument` holds it."""
    turn, ratio = calibration.get("QR_rotation"), axes_ratio(calibration)
    ellipse, theta = None, calibration.get("theta")
    if not math.isclose(ratio, 1.0, rel_tol=1e-9):
        direction = math.degrees(float(np.median(theta))) + (0.0 if ratio > 1 else 90.0)
        ellipse = (max(ratio, 1 / ratio), direction % 180.0)
    return {
        "rotation_deg": math.degrees(turn) if is_number(turn) else None,
        "transposed": is_number(turn) and _exchanged(calibration),
        "flip": str(calibration.get("Q_flip", "none")),
        "ellipse": ellipse,
    }


def told_axes(known: Instrument) -> list[str]:
    """What is taken for granted of the axes of a detector, and who says so, in a few words each."""
    said = dict(known.axes_from)
    by = lambda name: f" ({said.get(name, BY_FILE)})"  # noqa: E731
    words = [known.axes]
    if known.ellipse is not None:
        ratio, along = known.ellipse
        words.append(f"rings {ratio:.4f} times longer along {along:.1f}°{by('ellipse')}")
    if known.flip != "none":
        words.append(f"detector {known.flip} flipped{by('flip')}")
    if known.transposed:
        words.append(f"transposed{by('transpose')}")
    if known.rotation_deg is None:
        words.append("no rotation stated")
    elif known.rotation_deg or "rotation_deg" in said or not known.transposed:
        words.append(f"turned by {known.rotation_deg:.1f}°{by('rotation_deg')}")
    if known.frames is not None:
        words.append(known.frames)
    return words


def source_turned(source: DiskSource, matrix: Float[np.ndarray, "2 2"]) -> DiskSource:
    """Disks whose (qx, qy) become `matrix @ (qx, qy)`, and their counts likewise.

    Raises InputError then as the source does.
    """
    matrix = np.asarray(matrix, np.float64)
    back = np.linalg.inv(matrix)

    def read(start: int, stop: int) -> DiskScan:
        scan = source.read(start, stop)
        qx, qy = (matrix @ np.stack([scan.qx, scan.qy])).astype(scan.qx.dtype)
        return replace(scan, qx=qx, qy=qy)

    def turned_detector(detector: Detector) -> Detector:
        places = (np.asarray(detector.to_places, np.float64) @ back).astype(np.float32)
        disk = float(detector.disk) * math.sqrt(abs(np.linalg.det(matrix)))
        return detector._replace(to_places=places, disk=np.float32(disk))

    detector = source.detector and turned_detector(source.detector)
    pooled = None
    if source.pooled is not None:
        pooled = lambda *of: source_turned(source.pooled(*of), matrix)  # noqa: E731
    return replace(source, read=read, detector=detector, pooled=pooled)
