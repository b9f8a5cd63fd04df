# SPDX-License-Identifier: GPL-3.0-or-later
"""What detection keeps of a scan's counts, for verification to ask for any place.

Sums over the aperture at places so near to each other that those between follow by interpolation,
and the background's factor in blocks: a byte a place, in memory or, for scans that would fill it,
in a temporary file without a name.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jaxstem.detection.layout import TABLE_STEP, Layout, Plan
from jaxstem.detection.likelihood import correlate, interior
from jaxstem.errors import InputError
from jaxstem.files.cube import Cube
from jaxstem.files.emd import calibrate_disks
from jaxstem.files.light import Detector, Light, ScanLight

IN_MEMORY = 1 << 30
"""Bytes of kept sums from which on they lie in a temporary file."""

_MOSTLY = 0.9
"""Share of an aperture's pixels that must be in use for its counts to be believed."""


def places_apart(plan: Plan) -> int:
    """Spacing [px] of the places at which sums are kept: half a disk's radius at most."""
    return max(1, int(_radius(plan) / 2))


def _radius(plan: Plan) -> float:
    """Radius of a disk [px]."""
    return math.sqrt(float(plan.area) / math.pi)


def room_for_light(cube: Cube, layout: Layout) -> Light:
    """Arrays for what is kept of all positions; centres are not known yet.

    Raises InputError where the folder of temporary files has no room for them.
    """
    n, apart = math.prod(cube.scan_shape), layout.places
    shape = (n, *(-(-side // apart) for side in cube.detector_shape))
    sums = _on_disk(shape) if math.prod(shape) > IN_MEMORY else np.zeros(shape, np.uint8)
    factor = np.zeros((n, *layout.blocks), np.float16)
    return Light(sums, factor, np.full((n, 2), np.nan, np.float32))


def _on_disk(shape: tuple[int, ...]) -> UInt8[np.memmap, "..."]:
    """Bytes in a temporary file without a name."""
    size = math.prod(shape)
    try:
        file = tempfile.TemporaryFile()
        # room for all of it now, for a disk that fills up later ends the process
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, np.uint8, "r+" if file.seek(0, 2) else "w+", shape=shape)
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()} has no room for the {size / 1e9:.1f} GB of counts that are "
            f"kept of this scan ({error.strerror}); set TMPDIR to a folder with more, or give "
            "--judge list."
        ) from None


def calibrated_light(
    light: Light,
    origin: Float[np.ndarray, "ny nx 2"],
    calibration: Mapping[str, Any],
    plan: Plan,
    layout: Layout,
    source: str,
) -> ScanLight | None:
    """The counts that were kept, with the place of every scattering vector.

    `origin` [px] of each position; `calibration` of `source` as `calibrate_disks` takes it. None
    where its ellipse differs from position to position.
    """
    if any(np.ndim(calibration.get(name, 0)) for name in ("a", "b", "theta")):
        return None
    steps = np.rec.fromarrays([np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])], names="qx,qy")
    about = {**calibration, "qx0": 0.0, "qy0": 0.0}
    qx, qy = calibrate_disks(steps, np.array([3]), (1, 1), about, source)
    of_pixels = np.array([qx[1:] - qx[0], qy[1:] - qy[0]])
    apart = layout.places
    covered = correlate(plan.good[None].astype(jnp.float32), plan.kernel)[0]
    seen = interior(plan.good.shape, layout) & (covered > _MOSTLY * plan.area)
    detector = Detector(
        background=np.asarray(plan.blurred * (plan.area / plan.power)),
        radius_step=np.float32(TABLE_STEP / apart),
        seen=np.asarray(seen)[::apart, ::apart],
        to_places=(np.linalg.inv(of_pixels) / apart).astype(np.float32),
        block=np.float32(layout.block / apart),
        disk=np.float32(_radius(plan) * math.sqrt(abs(np.linalg.det(of_pixels)))),
    )
    return ScanLight(
        light._replace(centre=(origin.reshape(-1, 2) / apart).astype(np.float32)), detector
    )
