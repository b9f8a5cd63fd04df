# SPDX-License-Identifier: GPL-3.0-or-later
"""Beams of more than one direction, as an average over tilts.

Within the illumination cone every direction makes its own pattern, all of them lie within one disk,
and the disk's intensity is their mean; a precessing beam goes round a cone, and its patterns are
brought back on top of each other. Both are one thing: an average over beam tilts (`Tilts`), which
leaves positions alone and changes excitation errors. Shapes: `N` reflections, `Q` tilts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from scipy.special import roots_jacobi

from jaxstem.diffraction.geometry import excitation_error
from jaxstem.errors import InputError
from jaxstem.orientation import rotations


class Tilts(NamedTuple):
    """Directions of a beam: tilt towards lab x and y [rad] and weight; the weights sum to one."""

    x: Float[np.ndarray, " Q"]
    y: Float[np.ndarray, " Q"]
    weight: Float[np.ndarray, " Q"]


def disk_tilts(semi_angle_mrad: float, rings: int = 1) -> Tilts:
    """Quadrature over an illumination cone: its axis and `rings` rings of 6, 12, 18, … tilts.

    Radii and weights are the Gauss-Radau rule in the square of the radius, which makes one ring the
    seven-point rule of degree five (A. H. Stroud, Approximate Calculation of Multiple Integrals,
    1971, S2 5-1). No rings: the axis alone.
    """
    if rings == 0:
        return Tilts(np.zeros(1), np.zeros(1), np.ones(1))
    node, jacobi = roots_jacobi(rings, 0.0, 1.0)
    weight = jacobi / (1 + node) / 2
    radius = 1e-3 * semi_angle_mrad * np.sqrt((1 + node) / 2)
    x, y, w = [np.zeros(1)], [np.zeros(1)], [1 - weight.sum(keepdims=True)]
    for number, (r, share) in enumerate(zip(radius, weight, strict=True), start=1):
        n = 6 * number
        angle = 2 * np.pi * (np.arange(n) + 0.5 * (number % 2)) / n
        x.append(r * np.cos(angle))
        y.append(r * np.sin(angle))
        w.append(np.full(n, share / n))
    return Tilts(*map(np.concatenate, (x, y, w)))


def ring_tilts(angle_deg: float, n: int = 24) -> Tilts:
    """`n` evenly spaced tilts of a beam precessing at `angle_deg` to the optic axis."""
    around = 2 * np.pi * np.arange(n) / n
    radius = np.deg2rad(angle_deg)
    return Tilts(radius * np.cos(around), radius * np.sin(around), np.full(n, 1 / n))


def beam_tilts(
    convergence_mrad: float = 0.0, precession_deg: float = 0.0, rings: int = 1, n_ring: int = 24
) -> Tilts | None:
    """Tilts of a beam of this convergence semi-angle and precession angle, None if it has neither.

    A beam with both has every sum of a tilt of the ring and one of the cone. Raises InputError for
    angles that are negative or not finite.
    """
    for name, angle in (("convergence_mrad", convergence_mrad), ("precession_deg", precession_deg)):
        if not (np.isfinite(angle) and angle >= 0):
            raise InputError(f"{name} is {angle}: give a number that is not negative.")
    if convergence_mrad == 0 and precession_deg == 0:
        return None
    disk = disk_tilts(convergence_mrad, rings if convergence_mrad else 0)
    ring = ring_tilts(precession_deg, n_ring if precession_deg else 1)
    return Tilts(
        np.add.outer(ring.x, disk.x).ravel(),
        np.add.outer(ring.y, disk.y).ravel(),
        np.multiply.outer(ring.weight, disk.weight).ravel(),
    )


def tilted(
    orientation: Float[ArrayLike, "... 3 3"],
    tilt_x: Float[ArrayLike, "..."] | float,
    tilt_y: Float[ArrayLike, "..."] | float,
) -> Float[Array, "... 3 3"]:
    """The orientation in the frame of a beam tilted by these angles [rad] towards lab x and y.

    The untilted beam runs along -z, the tilted one along (tilt_x, tilt_y, -1) to first order. The
    foil's normal is taken along with it, which changes intensities in second order only.
    """
    orientation = jnp.asarray(orientation)
    tilt_x, tilt_y = jnp.broadcast_arrays(jnp.asarray(tilt_x), jnp.asarray(tilt_y))
    turn = jnp.stack([tilt_y, -tilt_x, jnp.zeros_like(tilt_x)], axis=-1)
    return orientation @ rotations.rotation_vector_to_matrix(turn.astype(orientation.dtype))


def averaged(
    intensity: Callable[[Float[Array, "... N"]], Float[Array, "... N"]],
    orientation: Float[ArrayLike, "... 3 3"],
    g: Float[ArrayLike, "N 3"],
    wavelength: Float[Array, ""] | float,
    tilts: Tilts | None,
) -> tuple[Float[Array, "... N"], Float[Array, "... N"], Float[Array, "... N"]]:
    """qx, qy [1/Å] of the untilted pattern, and `intensity(s)` averaged over the tilts."""
    g_lab = jnp.einsum("...ji,nj->...ni", orientation, g)
    qx, qy = g_lab[..., 0], g_lab[..., 1]
    if tilts is None:
        return qx, qy, intensity(excitation_error(g_lab, wavelength))

    def add(total, tilt):
        turned = jnp.einsum("...ji,nj->...ni", tilted(orientation, tilt[0], tilt[1]), g)
        return total + tilt[2] * intensity(excitation_error(turned, wavelength)), None

    steps = jnp.asarray(np.stack(tilts, axis=-1), g_lab.dtype)
    return qx, qy, jax.lax.scan(add, jnp.zeros_like(qx), steps)[0]
