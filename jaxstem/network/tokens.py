# SPDX-License-Identifier: GPL-3.0-or-later
"""From Bragg disks to the numbers that a transformer reads: one token a disk.

A token has three channels: radial distance k_r [1/Å], polar angle k_theta [rad, from lab x towards
lab y] and intensity relative to the strongest disk. The published embedding digitises each channel
and adds three embeddings of the bins (`digitise`, `sinusoidal`, `harmonics`; Je et al., arXiv
2602.12420). The default keeps the channels continuous: `continuous_features` turns them into smooth
functions that are periodic in the angle by construction. Shapes: `...` patterns, `K` disks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from jaxstem.diffraction.geometry import Disks

K_R_BINS, K_R_LIMIT = 256, 2.99

K_THETA_BINS = 360

INTENSITY_BINS, INTENSITY_FLOOR = 64, 0.001

HARMONICS = 15

_FAINTEST = float(-jnp.log(1e4))
"""Logarithm of the weakest intensity, over the strongest disk or the beam, that tokens tell."""


class Sight(NamedTuple):
    """What can be seen of a pattern, without which its missing disks say nothing.

    reach: radius [1/Å] beyond which no disk can be seen; faintest: logarithm of the weakest disk
    that is listed as a share of the pattern's strongest; brightest: of the strongest as a share of
    the incident beam, 0 where the beam is not known.
    """

    reach: Float[ArrayLike, "..."]
    faintest: Float[ArrayLike, "..."]
    brightest: Float[ArrayLike, "..."]


def plain_sight(disks: Disks, reach: Float[ArrayLike, "..."]) -> Sight:
    """What is known of disks alone: their weakest is the weakest that is listed."""
    level = jnp.where(disks.mask, relative_intensity(disks), 1.0).min(axis=-1)
    faintest = jnp.log(jnp.maximum(level, 1e-4))
    return Sight(jnp.broadcast_to(jnp.asarray(reach), level.shape), faintest, jnp.zeros_like(level))


def sight(
    disks: Disks,
    reach: Float[ArrayLike, "..."],
    weakest: Float[ArrayLike, "..."],
    beam: Float[ArrayLike, "..."],
) -> Sight:
    """What can be seen of patterns (..., K), from the `weakest` disk that would be listed and the
    incident `beam`, 0 where that is not known, both in the units of the disks' intensities. `reach`
    in 1/Å. Shares are held between 1e-4 and 1.
    """
    strongest = jnp.maximum(jnp.where(disks.mask, disks.intensity, 0.0).max(axis=-1), 1e-30)
    share = lambda x, of: jnp.log(jnp.maximum(x, 1e-30) / jnp.maximum(of, 1e-30))  # noqa: E731
    faintest = jnp.clip(share(weakest, strongest), _FAINTEST, 0.0)
    brightest = jnp.clip(share(strongest, beam), _FAINTEST, -1e-3)
    known = jnp.asarray(beam) > 0
    reach = jnp.broadcast_to(jnp.asarray(reach, strongest.dtype), strongest.shape)
    return Sight(reach, faintest, jnp.where(known, brightest, 0.0))


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
    disks: Disks, k_max: float, seen: Sight | None = None, exposure: bool = False
) -> Float[Array, "... K F"]:
    """Smooth features of each disk: waves in k_r / k_max and log intensity, harmonics in k_theta.

    The harmonics are given with and without weight k_r / k_max, so that the position itself
    (first weighted harmonic) is among them. What can be `seen` adds waves in reach / k_max, alike
    for all disks, and with `exposure` waves in its logarithms and whether the beam is known.
    `k_max` in 1/Å.
    """
    k_r, k_theta = polar(disks)
    radius = k_r / k_max
    turn = harmonics(k_theta)
    level = 1.0 + jnp.log(jnp.maximum(relative_intensity(disks), 1e-4)) / jnp.log(1e4)
    features = [waves(radius, 6), turn, radius[..., None] * turn, waves(level, 4)]
    if seen is not None:
        share = jnp.minimum(jnp.asarray(seen.reach, radius.dtype) / k_max, 1.0)
        alike = [waves(share, 3)]
        if exposure:
            known = (jnp.asarray(seen.brightest) < 0).astype(radius.dtype)[..., None]
            faintest, brightest = (
                waves(1.0 - jnp.clip(x / _FAINTEST, 0.0, 1.0), 3) for x in seen[1:]
            )
            alike += [faintest, known * brightest, known]
        features += [jnp.broadcast_to(x[..., None, :], (*radius.shape, x.shape[-1])) for x in alike]
    return jnp.concatenate(features, axis=-1)
