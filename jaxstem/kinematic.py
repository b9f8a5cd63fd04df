# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinematic electron diffraction: orientations in, Bragg disks out.

A reciprocal-lattice vector g diffracts when it lies close to the Ewald sphere. Its distance from
the sphere along the beam, the excitation error s_g, sets how much of the intensity |F_g|^2 is
excited; its two components across the beam are where the disk lies on the detector. Turning the
crystal is a matrix product, so that a whole batch of patterns is one `(..., N, 3)` array of vectors
in the laboratory frame.

A real beam is not one direction. Within the illumination cone every direction makes its own
pattern, all of them lie within one disk, and the disk's intensity is their mean; a precessing beam
goes round a cone, and its patterns are brought back on top of each other. Both are one thing: an
average over beam tilts (`Tilts`), which leaves positions alone and changes excitation errors.

Shapes: `...` patterns, `N` reflections of the crystal, `K` disks kept, `Q` tilts of the beam.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.special import roots_jacobi

from jaxstem import so3
from jaxstem.errors import InputError


class Disks(NamedTuple):
    """Bragg disks of a batch of patterns, padded to K; the direct beam is not among them.

    qx, qy: position [1/Å] along lab x (detector axis 0) and lab y (axis 1); intensity: any unit,
    zero where `mask` is False (padding).
    """

    qx: Float[Array, "... K"]
    qy: Float[Array, "... K"]
    intensity: Float[Array, "... K"]
    mask: Bool[Array, "... K"]


class Reflectors(NamedTuple):
    """What diffraction needs of a crystal at one beam energy.

    g: scattering vectors [1/Å, crystal Cartesian]; intensity: |F|^2 [Å^2]; inverse_extinction:
    1/ξ_g [1/Å], the reciprocal of the two-beam extinction distance.
    """

    g: Float[Array, "N 3"]
    intensity: Float[Array, " N"]
    inverse_extinction: Float[Array, " N"]


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
    orientation: Float[Array, "... 3 3"],
    tilt_x: Float[Array, "..."] | float,
    tilt_y: Float[Array, "..."] | float,
) -> Float[Array, "... 3 3"]:
    """The orientation in the frame of a beam tilted by these angles [rad] towards lab x and y.

    The untilted beam runs along -z, the tilted one along (tilt_x, tilt_y, -1) to first order. The
    foil's normal is taken along with it, which changes intensities in second order only.
    """
    orientation = jnp.asarray(orientation)
    tilt_x, tilt_y = jnp.broadcast_arrays(jnp.asarray(tilt_x), jnp.asarray(tilt_y))
    turn = jnp.stack([tilt_y, -tilt_x, jnp.zeros_like(tilt_x)], axis=-1)
    return orientation @ so3.rotation_vector_to_matrix(turn.astype(orientation.dtype))


def averaged(
    intensity: Callable[[Float[Array, "... N"]], Float[Array, "... N"]],
    orientation: Float[Array, "... 3 3"],
    g: Float[Array, "N 3"],
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


def excitation_error(
    g_lab: Float[Array, "... 3"], wavelength: Float[Array, ""] | float
) -> Float[Array, "..."]:
    """Distance [1/Å] from the Ewald sphere along the beam, positive inside the sphere.

    `g_lab` [1/Å] has the beam along -z; `wavelength` in Å. Exact for a beam along the foil normal:
    s = g_z - (1/λ - sqrt(1/λ^2 - g_x^2 - g_y^2)), from the geometry of the sphere (Williams &
    Carter, Transmission Electron Microscopy, chapter 12), written so that float32 loses nothing.
    """
    across = g_lab[..., 0] ** 2 + g_lab[..., 1] ** 2
    cap = wavelength * across / (1.0 + jnp.sqrt(jnp.maximum(1.0 - wavelength**2 * across, 0.0)))
    return g_lab[..., 2] - cap


def excited(
    orientation: Float[Array, "... 3 3"],
    reflectors: Reflectors,
    wavelength: Float[Array, ""] | float,
    sigma: Float[Array, "..."] | float,
    tilts: Tilts | None = None,
) -> tuple[Float[Array, "... N"], Float[Array, "... N"], Float[Array, "... N"]]:
    """All reflections of each pattern: qx, qy [1/Å] and intensity |F|^2 exp(-s^2 / 2σ^2) [Å^2].

    `sigma` [1/Å] is the width of the shape function, one number or one a pattern; a foil of
    thickness t has σ of about 0.4 / t; `tilts` are those of the beam. The Gaussian shape is that of
    py4DSTEM (Ophus et al., Microscopy and Microanalysis 28, 390 (2022), section on structure
    factors).
    """
    width = jnp.asarray(sigma)[..., None]
    shape = lambda s: reflectors.intensity * jnp.exp(-0.5 * (s / width) ** 2)  # noqa: E731
    return averaged(shape, orientation, reflectors.g, wavelength, tilts)


def expected_intensity(
    s: Float[Array, "..."], inverse_extinction: Float[Array, "..."], floor: float
) -> Float[Array, "..."]:
    """Two-beam intensity averaged over thickness, a share of the incident beam.

    (1/ξ)^2 / 2 / (s^2 + 1/ξ^2 + floor^2): the mean of sin^2 is one half; `floor` [1/Å] stands for
    the finite thickness (about 1/(π t)), or for a coarse search (Hirsch et al., Electron Microscopy
    of Thin Crystals, 1965, ch. 8).
    """
    return 0.5 * inverse_extinction**2 / (s**2 + inverse_extinction**2 + floor**2)


def two_beam(
    orientation: Float[Array, "... 3 3"],
    reflectors: Reflectors,
    wavelength: Float[Array, ""] | float,
    thickness: Float[Array, "..."] | float,
    tilts: Tilts | None = None,
) -> tuple[Float[Array, "... N"], Float[Array, "... N"], Float[Array, "... N"]]:
    """All reflections of each pattern: qx, qy [1/Å] and the two-beam intensity, 0 … 1.

    I = sin^2(π t s_eff) / (ξ s_eff)^2 with s_eff^2 = s^2 + 1/ξ^2, a share of the incident beam, for
    a foil `thickness` Å thick (Hirsch et al., Electron Microscopy of Thin Crystals, 1965, ch. 8).
    For thin foils it is the kinematic |F|^2 sinc^2; in thick ones strong reflections saturate, and
    how far from the Ewald sphere a reflection is seen grows with its structure factor. `tilts` are
    those of the beam.
    """

    def intensity(s):
        effective = jnp.sqrt(s**2 + reflectors.inverse_extinction**2)
        swing = jnp.sin(jnp.pi * jnp.asarray(thickness)[..., None] * effective)
        return (swing * reflectors.inverse_extinction / effective) ** 2

    return averaged(intensity, orientation, reflectors.g, wavelength, tilts)


def strongest(
    qx: Float[Array, "... N"],
    qy: Float[Array, "... N"],
    intensity: Float[Array, "... N"],
    n_disks: int,
    relative_threshold: Float[Array, "..."] | float = 0.0,
) -> Disks:
    """The `n_disks` strongest disks, strongest first.

    Disks not above `relative_threshold` times the strongest, and those of no intensity, are masked
    out. Positions in 1/Å; padding has position and intensity zero.
    """
    n_disks = min(n_disks, intensity.shape[-1])
    value, index = jax.lax.top_k(intensity, n_disks)
    floor = jnp.asarray(relative_threshold)[..., None] * value[..., :1]
    mask = (value > floor) & (value > 0)
    take = lambda q: jnp.where(mask, jnp.take_along_axis(q, index, axis=-1), 0.0)  # noqa: E731
    return Disks(take(qx), take(qy), jnp.where(mask, value, 0.0), mask)


def simulate(
    orientation: Float[Array, "... 3 3"],
    reflectors: Reflectors,
    wavelength: float,
    sigma: Float[Array, "..."] | float = 0.02,
    n_disks: int = 32,
    relative_threshold: float = 1e-3,
    tilts: Tilts | None = None,
) -> Disks:
    """The strongest disks of kinematic patterns.

    `orientation` has the lab axes as columns in crystal coordinates (q_lab = R^T g); `wavelength`
    [Å]; `sigma` [1/Å]; disks weaker than `relative_threshold` of the strongest are masked; `tilts`
    are those of the beam.
    """
    return strongest(
        *excited(orientation, reflectors, wavelength, sigma, tilts), n_disks, relative_threshold
    )
