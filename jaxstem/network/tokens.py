# SPDX-License-Identifier: GPL-3.0-or-later
"""From Bragg disks to the numbers that a transformer reads: one token a disk.

A token has three channels: radial distance k_r [1/Å], polar angle k_theta [rad, from lab x towards
lab y] and intensity relative to the strongest disk. The published embedding digitises each channel
and adds three embeddings of the bins (`digitise`, `sinusoidal`, `harmonics`; Je et al., arXiv
2602.12420). The default keeps the channels continuous: `continuous_features` turns them into smooth
functions that are periodic in the angle by construction. Shapes: `...` patterns, `K` disks.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from jaxstem.diffraction.geometry import Disks

K_R_BINS, K_R_LIMIT = 256, 2.99

K_THETA_BINS = 360

INTENSITY_BINS, INTENSITY_FLOOR = 64, 0.001

HARMONICS = 15


def polar(disks: Disks) -> tuple[Float[Array, "... K"], Float[Array, "... K"]]:
    """Radial distance [1/Å] and polar angle [rad, 0 … 2π) of each disk."""
    k_r = jnp.sqrt(disks.qx**2 + disks.qy**2)
    return k_r, jnp.arctan2(disks.qy, disks.qx) % (2 * jnp.pi)


def relative_intensity(disks: Disks) -> Float[Array, "... K"]:
    """Intensity over that of the strongest disk of the pattern, 0 … 1."""
    intensity = jnp.where(disks.mask, disks.intensity, 0.0)
    return intensity / jnp.maximum(intensity.max(axis=-1, keepdims=True), 1e-30)


def digitise(
    disks: Disks,
) -> tuple[Int[Array, "... K"], Int[Array, "... K"], Int[Array, "... K"]]:
    """Bins of k_r (256 on 0 … 2.99 1/Å), k_theta (360, wrapping) and intensity (64 on 0.001 … 1).

    The bins of the published method; values outside a range fall into its end bins.
    """
    k_r, k_theta = polar(disks)
    intensity = (relative_intensity(disks) - INTENSITY_FLOOR) / (1.0 - INTENSITY_FLOOR)
    to_bin = lambda x, n: jnp.clip((x * n).astype(jnp.int32), 0, n - 1)  # noqa: E731
    theta_bin = jnp.round(k_theta / (2 * jnp.pi) * K_THETA_BINS).astype(jnp.int32) % K_THETA_BINS
    return to_bin(k_r / K_R_LIMIT, K_R_BINS), theta_bin, to_bin(intensity, INTENSITY_BINS)


def sinusoidal(
    position: Float[Array, "..."], width: int, base: float
) -> Float[Array, "... {width}"]:
    """Sine and cosine of `position` at `width / 2` frequencies from 1 to 1/base, interleaved.

    The positional encoding of Vaswani et al., arXiv 1706.03762, section 3.5.
    """
    frequency = base ** (-jnp.arange(0, width, 2) / width)
    phase = position[..., None] * frequency
    return jnp.stack([jnp.sin(phase), jnp.cos(phase)], axis=-1).reshape(*position.shape, width)


def harmonics(angle: Float[Array, "..."], order: int = HARMONICS) -> Float[Array, "... 2*{order}"]:
    """cos(mθ) and sin(mθ) for m = 1 … order; `angle` in radians."""
    phase = angle[..., None] * jnp.arange(1, order + 1)
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


def waves(x: Float[Array, "..."], octaves: int) -> Float[Array, "... 2*{octaves}"]:
    """sin(2π 2^j x / 2) and the cosine for j = 0 … octaves - 1, for x in 0 … 1."""
    phase = jnp.pi * x[..., None] * 2.0 ** jnp.arange(octaves)
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def continuous_features(
    disks: Disks, k_max: float, reach: Float[ArrayLike, "..."] | None = None
) -> Float[Array, "... K F"]:
    """Smooth features of each disk: waves in k_r / k_max and log intensity, harmonics in k_theta.

    The harmonics are given with and without weight k_r / k_max, so that the position itself
    (first weighted harmonic) is among them. `reach`, the radius up to which disks of the pattern
    can be seen, adds waves in reach / k_max, alike for all disks. `k_max`, `reach` in 1/Å.
    """
    k_r, k_theta = polar(disks)
    radius = k_r / k_max
    turn = harmonics(k_theta)
    level = 1.0 + jnp.log(jnp.maximum(relative_intensity(disks), 1e-4)) / jnp.log(1e4)
    features = [waves(radius, 6), turn, radius[..., None] * turn, waves(level, 4)]
    if reach is not None:
        share = jnp.minimum(jnp.asarray(reach, radius.dtype) / k_max, 1.0)
        features.append(waves(jnp.broadcast_to(share[..., None], radius.shape), 3))
    return jnp.concatenate(features, axis=-1)
