# SPDX-License-Identifier: GPL-3.0-or-later
"""What detection keeps of a scan's counts, for verification to ask for any place.

Sums over the aperture at places so near to each other that those between follow from them, and the
background's factor in blocks: a byte a place, in memory or, for scans that would fill it, in a
temporary file without a name.
"""

from __future__ import annotations

import math
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from scipy.ndimage import map_coordinates

from jaxstem.detection.layout import POOLED, TABLE_STEP, Layout, Plan
from jaxstem.detection.likelihood import correlate, interior
from jaxstem.errors import InputError
from jaxstem.files.cube import Cube
from jaxstem.files.light import Apertures, Light, everywhere

IN_MEMORY = 1 << 30
"""Bytes of kept sums from which on they lie in a temporary file."""

_MOSTLY = 0.9
"""Share of an aperture's pixels that must be in use for its counts to be believed."""


def places_apart(plan: Plan) -> int:
    """Spacing [px] of the places at which sums are kept: half a disk's radius at most."""
    return max(1, int(_radius(plan) / 2))


def stored_light(light: Light, plan: Plan, layout: Layout) -> tuple[Light, Apertures]:
    """What a file takes of the counts: every second place, if a disk's radius at most apart."""
    every = 2 if 2 * places_apart(plan) <= _radius(plan) else 1
    return light._replace(sums=light.sums[:, ::every, ::every]), apertures_of(plan, layout, every)


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
    factor = np.zeros((n, *(-(-side // POOLED) for side in layout.blocks)), np.uint8)
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


def apertures_of(plan: Plan, layout: Layout, every: int = 1) -> Apertures:
    """What the counts that a detection keeps share, in detector pixels, if of its places every one,
    or every second one along each axis, and so on, is left.
    """
    apart = layout.places
    covered = correlate(plan.good[None].astype(jnp.float32), plan.kernel)[0]
    seen = interior(plan.good.shape, layout) & (covered > _MOSTLY * plan.area)
    return Apertures(
        apart=float(apart),
        radius=_radius(plan),
        background=np.asarray(plan.blurred * (plan.area / plan.power)),
        radius_step=TABLE_STEP / apart,
        seen=np.asarray(seen)[::apart, ::apart],
        block=POOLED * layout.block / apart,
        found=_found(plan, apart, every),
    )


def _found(plan: Plan, apart: int, every: int) -> float:
    """Share of a disk's light that is found at its place, anywhere between those that are kept."""
    shape, every = plan.good.shape, apart * every
    offsets = np.stack(np.meshgrid(*[np.arange(_OFFSETS) * every / _OFFSETS] * 2), -1)
    middle = every * (np.array(shape) // (2 * every)) + offsets.reshape(-1, 2)
    far = [np.arange(n)[:, None] - middle[:, i] for i, n in enumerate(shape)]
    radius = np.hypot(far[0][:, None], far[1][None]) / TABLE_STEP
    disk = np.interp(radius, np.arange(len(plan.probe)), plan.probe, right=0)
    images = jnp.asarray(np.moveaxis(disk, -1, 0) / plan.area, jnp.float32)
    sums = correlate(images, plan.kernel) * (plan.area / plan.power)
    sides = tuple(-(-n // apart) for n in shape)
    filled = np.asarray(jax.vmap(lambda one: everywhere(one[::every, ::every], sides))(sums))
    parts = [
        map_coordinates(one, place[:, None] / apart, order=1)
        for one, place in zip(filled, middle, strict=True)
    ]
    return float(np.mean(parts))


_OFFSETS = 4
"""Places of a disk between those that are kept, along each axis."""
