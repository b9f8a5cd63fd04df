# SPDX-License-Identifier: GPL-3.0-or-later
"""How well an orientation explains a pattern, by the scores of template matching; and how far
orientation maps are correlated in space.

Two scores of one pattern and one orientation, each that of another program, here for any
orientation instead of those on its grid:

- *Sparse correlation*, py4DSTEM's (C. Ophus et al., Microscopy and Microanalysis 28 (2022) 390,
  "Automated crystal orientation mapping"). Disks are points, blurred by a kernel of about the
  disk's size in the polar plane; each reflection close to the Ewald sphere picks up what lies at
  its place, weighted by its radius and a low power of its kinematic intensity. The template's norm
  is one, the pattern's is not: scores compare orientations of one pattern, not patterns.
- *Normalised cross-correlation* Q, pyxem's (N. Cautaerts et al., Ultramicroscopy 237 (2022)
  113517, eq. 1). The template's points pick up pixels of the pattern in polar coordinates;
  both norms are one, so 0 <= Q <= 1.

Two-point correlations tell over which distance zone axes resemble each other, within one map
(auto) or between two maps of one scan (cross), (D. T. Fullwood et al., Progress in Materials
Science 55 (2010) 477).

Shapes: `B` patterns, `K` disks, `N` reflections, `T R` angles and radii of a polar image, `ny nx`
scan positions. Lengths in 1/Å, angles in rad.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float
from scipy.signal import fftconvolve

from jaxstem.diffraction.geometry import Disks, Reflectors, excitation_error
from jaxstem.orientation import rotations

SHELL = 0.005
"""Difference of radii [1/Å] up to which py4DSTEM takes reflections for one shell."""


@dataclass(frozen=True)
class SparseConfig:
    """py4DSTEM's settings of sparse correlation, its defaults.

    kernel: of the polar plane [1/Å]; sigma: width of the excitation error [1/Å]; power_radial,
    power_intensity (of the template), power_measured; angle_step_deg: bins of its templates along
    the angle [degrees], 0 for the limit of many bins. In bins the norm of a template depends on
    where within its bin a reflection falls, by up to a third; without them it does not, so that
    orientations off a grid compare fairly.
    """

    kernel: float = 0.08
    sigma: float = 0.02
    power_radial: float = 1.0
    power_intensity: float = 0.25
    power_measured: float = 0.25
    angle_step_deg: float = 0.0


def sparse_correlation(
    disks: Disks,
    orientation: Float[Array, "... 3 3"],
    reflectors: Reflectors,
    wavelength: Float[Array, ""] | float,
    config: SparseConfig = SparseConfig(),
) -> Float[Array, "..."]:
    """py4DSTEM's correlation of patterns `(..., K)` with orientations `(..., 3, 3)`.

    `wavelength` in Å. Disks with the direct beam left out, intensities in any unit. Counts what
    py4DSTEM 0.14's `orientation_plan` and `match_single_pattern` count. Its units are those of the
    intensities to the power of `power_measured`; those of the structure factors do not matter.
    """
    one = partial(_sparse, reflectors=reflectors, wavelength=wavelength, config=config)
    shape = orientation.shape[:-2]
    flat = jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[len(shape) :])), disks)
    return jax.vmap(one)(flat, jnp.reshape(orientation, (-1, 3, 3))).reshape(shape)


def _sparse(disks, orientation, reflectors, wavelength, config):
    g = reflectors.g @ orientation
    radius = jnp.linalg.norm(reflectors.g, axis=1)
    s = excitation_error(g, wavelength)
    kept = jnp.abs(s) < config.kernel
    excited = reflectors.intensity * jnp.exp(-0.5 * (s / config.sigma) ** 2)
    amplitude = jnp.where(kept, excited**config.power_intensity * radius**config.power_radial, 0.0)
    angle = jnp.arctan2(g[:, 1], g[:, 0])

    k_r, k_theta = jnp.hypot(disks.qx, disks.qy), jnp.arctan2(disks.qy, disks.qx)
    strength = jnp.where(disks.mask, jnp.maximum(disks.intensity, 0.0), 0.0)
    strength = jnp.where(strength > 0, strength**config.power_measured, 0.0)

    def blurred(angle):
        """The pattern at these angles on the reflections' radii."""
        across = radius[:, None] - k_r
        turn = angle[:, None] - k_theta
        along = (jnp.mod(turn + jnp.pi, 2 * jnp.pi) - jnp.pi) * radius[:, None]
        weight = jnp.exp(-0.5 * (across**2 + along**2) / config.kernel**2)
        return jnp.where(jnp.abs(across) < config.kernel, weight, 0.0) @ strength

    if not config.angle_step_deg:
        found, norm = amplitude @ blurred(angle), jnp.sum(amplitude**2)
    else:
        n_bins = round(360 / config.angle_step_deg)
        place = angle * (n_bins / (2 * jnp.pi))
        below = jnp.floor(place)
        bins = jnp.stack([below, below + 1])
        share = amplitude * jnp.stack([1 - (place - below), place - below])
        found = jnp.sum(share * jax.vmap(blurred)(bins * (2 * jnp.pi / n_bins)))
        same_shell = jnp.abs(radius[:, None] - radius) < SHELL
        apart = jnp.mod(bins[:, None, :, None] - bins[None, :, None, :], n_bins) == 0
        norm = jnp.einsum("ai,bj,abij,ij->", share, share, apart, same_shell.astype(share.dtype))
    return jnp.maximum(found, 0.0) / jnp.sqrt(jnp.maximum(norm, 1e-30))


def led_uphill(
    disks: Disks,
    orientation: Float[Array, "3 3"],
    reflectors: Reflectors,
    wavelength: Float[Array, ""] | float,
    reach: Float[Array, ""] | float,
    config: SparseConfig = SparseConfig(),
) -> Float[Array, "3 3"]:
    """The orientation of the highest sparse correlation of a pattern `(K,)` near `orientation`.

    Near is as far as `reach` [rad] and half of that again about each lab axis: three lattices of
    five turns about each, every one a third as wide as that before. The correlation never falls.
    """
    axis = jnp.linspace(-1.0, 1.0, 5)
    lattice = jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)

    def step(orientation, width):
        tried = orientation @ rotations.rotation_vector_to_matrix(width * lattice)
        score = jax.vmap(lambda r: _sparse(disks, r, reflectors, wavelength, config))(tried)
        # among equals the middle of the lattice, where it stays
        best = jnp.argmax(score.at[len(lattice) // 2].multiply(1 + 1e-6))
        return tried[best], None

    return jax.lax.scan(step, orientation, reach / 3.0 ** jnp.arange(3.0))[0]


def polar_image(
    pattern: Float[Array, "H W"],
    centre: Float[Array, " 2"],
    n_angles: int,
    n_radii: int,
    step: float = 1.0,
) -> Float[Array, "n_angles n_radii"]:
    """A pattern in polar coordinates about `centre` (row, column), by bilinear interpolation.

    Angles from detector axis 0 towards axis 1, from 0 in steps of 2 π / n_angles; radii from 0 in
    steps of `step` pixels.
    """
    angle = jnp.arange(n_angles)[:, None] * (2 * jnp.pi / n_angles)
    radius = step * jnp.arange(n_radii)
    rows, columns = centre[0] + radius * jnp.cos(angle), centre[1] + radius * jnp.sin(angle)
    return map_coordinates(pattern, [rows, columns], order=1, mode="constant")


def normalised_cross_correlation(
    image: Float[Array, "T R"], disks: Disks, radius_step: float
) -> Float[Array, ""]:
    """pyxem's Q of a polar image and a template's points `(K,)`.

    Angles of the image run from lab x towards lab y over a whole turn, radii in steps of
    `radius_step` [1/Å]. Each point takes the pixel nearest to it; those beyond the image are left
    out, also of the template's norm. Transform intensities of both before (a square root is usual).
    """
    n_angles, n_radii = image.shape
    index = jnp.rint(jnp.hypot(disks.qx, disks.qy) / radius_step).astype(jnp.int32)
    turn = jnp.arctan2(disks.qy, disks.qx) * (n_angles / (2 * jnp.pi))
    angle = jnp.rint(turn).astype(jnp.int32) % n_angles
    weight = jnp.where(disks.mask & (index < n_radii), disks.intensity, 0.0)
    at = image[angle, jnp.minimum(index, n_radii - 1)]
    norms = jnp.sum(image**2) * jnp.sum(weight**2)
    return weight @ at / jnp.sqrt(jnp.maximum(norms, 1e-30))


def reduced_axes(
    orientation: Float[np.ndarray, "... 3 3"],
    operations: Float[np.ndarray, "n 3 3"],
    column: int = 2,
) -> Float[np.ndarray, "... 3"]:
    """A lab axis (0: x, 1: y, 2: z, the zone axis) in the crystal, reduced by its symmetry.

    Of all ± O @ axis the one nearest to a fixed direction inside a sector. For m-3m, whose mirrors
    are reflected in this, it is the coordinates' magnitudes in ascending order but for which is
    which: neighbouring axes stay neighbours.
    """
    axis = np.asarray(orientation)[..., column]
    if len(operations) == 24:  # 432: with inversion and its mirrors the standard triangle
        return np.sort(np.abs(axis), axis=-1)
    direction = np.array([0.3, 0.45, 0.841])
    equivalents = np.einsum("nij,...j->...ni", operations, axis)
    equivalents = np.concatenate([equivalents, -equivalents], axis=-2)
    best = np.argmax(equivalents @ direction, axis=-1)
    return np.take_along_axis(equivalents, best[..., None, None], axis=-2)[..., 0, :]


def two_point(
    first: Float[np.ndarray, "ny nx c"],
    second: Float[np.ndarray, "ny nx c"],
    known: Bool[np.ndarray, "ny nx"] | None = None,
) -> Float[np.ndarray, "rows columns"]:
    """Mean of `first(p) · second(p + d)` over the pairs of known positions, for each shift d.

    (2 ny - 1, 2 nx - 1) shifts, none in the middle; NaN where there is no pair. Of zone axes it is
    the mean cosine of their angle. By convolution (Fourier transforms), borders not wrapped.
    """
    known = np.ones(first.shape[:2], bool) if known is None else known
    clear = lambda x: np.where(known[..., None], x, 0.0).astype(float)  # noqa: E731
    first, second = clear(first), clear(second)
    pair = lambda a, b: fftconvolve(b, a[::-1, ::-1])  # noqa: E731
    count = np.rint(pair(known.astype(float), known.astype(float)))
    total = sum(pair(first[..., i], second[..., i]) for i in range(first.shape[-1]))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def azimuthal_average(
    correlation: Float[np.ndarray, "rows columns"], n_radii: int | None = None
) -> Float[np.ndarray, " n_radii"]:
    """Mean of a `two_point` correlation over all shifts of length r - 1/2 … r + 1/2, r = 0, 1, …

    Up to half of the map's shorter side, beyond which pairs are few; NaN where there are none.
    """
    rows, columns = correlation.shape
    n_radii = n_radii or (min(rows, columns) + 5) // 4
    distance = np.hypot(np.arange(rows)[:, None] - rows // 2, np.arange(columns) - columns // 2)
    ring = np.rint(distance).astype(int)
    used = (ring < n_radii) & np.isfinite(correlation)
    total = np.bincount(ring[used], correlation[used], n_radii)
    count = np.bincount(ring[used], minlength=n_radii)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
