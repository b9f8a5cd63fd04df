# SPDX-License-Identifier: GPL-3.0-or-later
"""What microscope and disk detection do to a pattern, between the physics and the network.

A simulated pattern is perfect; a detected one lacks disks, has false ones, and its positions and
intensities scatter. Each effect here is a pure function `(key, disks, ...) -> disks` on one
pattern's arrays of shape `(K,)` (vmap adds the batch), and `Acquisition` holds the ranges from
which each pattern draws its own severity, so that a network meets clean and spoilt patterns alike.
Lengths in 1/Å; intensities are shares of the incident beam.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from jaxstem.diffraction.geometry import Disks


@dataclass(frozen=True)
class Acquisition:
    """Ranges (low, high), drawn uniformly for each pattern, log-uniformly where said.

    overlap: probability that a second grain is in the beam; overlap_share: the first one's part of
    the beam then; disk_radius [1/Å], within which disks of two grains merge; damping [Å^2]: c of
    exp(-c q^2) on intensities, for more or less thermal motion than simulated and for the
    detector's blur; intensity_scatter: standard deviation of the natural logarithm of each
    intensity, which stands for what the simulation leaves out; dose: electrons a pattern
    (log); background: diffuse counts under a disk, share of the dose; cutoff: weakest intensity
    that is detected (log), lowered where needed to leave four disks; glare: how much higher that
    limit is beside the direct beam, where diffuse scattering is; missed: share of disks lost;
    false_rate: mean number of false disks; position_jitter [1/Å]; centre [1/Å], scale, ellipticity:
    standard deviations of calibration errors (not ranges); reach: radius beyond which no disk can
    be seen, a share of k_max, for detectors and apertures end somewhere; beam_known: share of the
    patterns whose incident beam is known.
    """

    overlap: float = 0.1
    overlap_share: tuple[float, float] = (0.6, 0.95)
    disk_radius: float = 0.07
    damping: tuple[float, float] = (-0.05, 0.3)
    intensity_scatter: tuple[float, float] = (0.0, 0.4)
    dose: tuple[float, float] = (2e4, 2e6)
    background: tuple[float, float] = (0.0, 1e-3)
    cutoff: tuple[float, float] = (8e-5, 4e-3)
    glare: tuple[float, float] = (0.0, 6.0)
    missed: tuple[float, float] = (0.0, 0.15)
    false_rate: tuple[float, float] = (0.0, 3.0)
    position_jitter: tuple[float, float] = (0.001, 0.012)
    centre: float = 0.006
    scale: float = 0.006
    ellipticity: float = 0.004
    reach: tuple[float, float] = (0.6, 1.0)
    beam_known: float = 0.8


_GLARE_RADIUS = 0.6
"""How far [1/Å] from the direct beam diffuse scattering hides weak disks."""

CLEAN = Acquisition(
    overlap=0.0,
    damping=(0.0, 0.0),
    intensity_scatter=(0.0, 0.0),
    dose=(1e9, 1e9),
    background=(0.0, 0.0),
    cutoff=(1e-5, 1e-5),
    glare=(0.0, 0.0),
    missed=(0.0, 0.0),
    false_rate=(0.0, 0.0),
    position_jitter=(0.0, 0.0),
    centre=0.0,
    scale=0.0,
    ellipticity=0.0,
    reach=(1.0, 1.0),
)


def draw(key: PRNGKeyArray, limits: tuple[float, float], log: bool = False) -> Float[Array, ""]:
    """One number, uniform (or log-uniform) between the two limits."""
    low, high = limits
    if log:
        return jnp.exp(jax.random.uniform(key, (), minval=jnp.log(low), maxval=jnp.log(high)))
    return jax.random.uniform(key, (), minval=low, maxval=high)


def overlap(
    key: PRNGKeyArray, first: Disks, second: Disks, config: Acquisition, n_second: int = 24
) -> Disks:
    """The pattern of a first grain, now and then mixed with a second one's: (K,) → (K + n_second,).

    With probability `config.overlap` the first grain has a share of the beam drawn from
    `config.overlap_share` and the second one the rest, of which the `n_second` strongest disks
    count. A disk of the second within `config.disk_radius` of one of the first merges with it: one
    disk of their summed intensity at their centre of gravity. Where the probability is zero the
    first pattern comes back as it is.
    """
    if config.overlap == 0:
        return first
    key_is, key_share = jax.random.split(key)
    is_mixed = jax.random.bernoulli(key_is, config.overlap)
    share = jnp.where(is_mixed, draw(key_share, config.overlap_share), 1.0)
    second = _strongest(second, n_second)
    is_second = second.mask & is_mixed
    weak = jnp.where(is_second, (1 - share) * second.intensity, 0.0)
    strong = share * first.intensity

    distance = jnp.hypot(second.qx[:, None] - first.qx, second.qy[:, None] - first.qy)
    distance = jnp.where(first.mask, distance, jnp.inf)
    merges = is_second & (jnp.min(distance, axis=1) < config.disk_radius)
    partner = merges[:, None] & (jnp.argmin(distance, axis=1)[:, None] == jnp.arange(len(first.qx)))
    added = jnp.sum(jnp.where(partner, weak[:, None], 0.0), axis=0)
    total = jnp.maximum(strong + added, 1e-30)
    moment = lambda q: jnp.sum(jnp.where(partner, (weak * q)[:, None], 0.0), axis=0)  # noqa: E731
    centre = lambda q, other: jnp.where(  # noqa: E731
        added > 0, (strong * q + moment(other)) / total, q
    )
    alone = is_second & ~merges
    join = lambda a, b: jnp.concatenate([a, b])  # noqa: E731
    return Disks(
        join(centre(first.qx, second.qx), jnp.where(alone, second.qx, 0.0)),
        join(centre(first.qy, second.qy), jnp.where(alone, second.qy, 0.0)),
        join(jnp.where(first.mask, strong + added, 0.0), jnp.where(alone, weak, 0.0)),
        join(first.mask, alone),
    )


def damp(disks: Disks, damping: Float[ArrayLike, ""]) -> Disks:
    """Intensities times exp(-damping q^2), `damping` in Å^2."""
    factor = jnp.exp(-damping * (disks.qx**2 + disks.qy**2))
    return disks._replace(intensity=disks.intensity * factor)


def scatter_intensities(key: PRNGKeyArray, disks: Disks, sigma: Float[ArrayLike, ""]) -> Disks:
    """Each intensity times a log-normal factor of logarithmic standard deviation `sigma`."""
    factor = jnp.exp(sigma * jax.random.normal(key, disks.intensity.shape))
    return disks._replace(intensity=disks.intensity * factor)


def count_electrons(
    key: PRNGKeyArray, disks: Disks, dose: Float[ArrayLike, ""], background: Float[ArrayLike, ""]
) -> Disks:
    """Counting noise of a pattern of `dose` electrons over a diffuse `background` (share of dose).

    Poisson counts by their normal approximation, var = expected counts + background counts;
    intensities remain shares of the dose, negative ones become zero.
    """
    mean = disks.intensity * dose
    noise = jnp.sqrt(mean + background * dose) * jax.random.normal(key, mean.shape)
    counted = jnp.maximum(mean + noise, 0.0) / dose
    return disks._replace(intensity=jnp.where(disks.mask, counted, 0.0))


def miss_disks(key: PRNGKeyArray, disks: Disks, share: Float[ArrayLike, ""]) -> Disks:
    """Lose each disk with probability `share`."""
    return disks._replace(mask=disks.mask & ~jax.random.bernoulli(key, share, disks.mask.shape))


def cut_weak(disks: Disks, cutoff: Float[ArrayLike, "..."]) -> Disks:
    """Lose the disks weaker than `cutoff`, one number or one for each disk."""
    keep = disks.mask & (disks.intensity >= cutoff) & (disks.intensity > 0)
    return disks._replace(mask=keep, intensity=jnp.where(keep, disks.intensity, 0.0))


def _raised(
    cutoff: Float[ArrayLike, ""], disks: Disks, glare: Float[ArrayLike, ""]
) -> Float[Array, " K"]:
    """The detection limit at each disk, 1 + `glare` times as high at the centre as far from it."""
    radius = (disks.qx**2 + disks.qy**2) / _GLARE_RADIUS**2
    return cutoff * (1.0 + glare * jnp.exp(-radius))


def add_false_disks(
    key: PRNGKeyArray,
    disks: Disks,
    rate: Float[ArrayLike, ""],
    cutoff: Float[ArrayLike, ""],
    k_max: Float[ArrayLike, ""],
    n_max: int = 6,
) -> Disks:
    """Append up to `n_max` false disks, their number Poisson distributed with mean `rate`.

    Positions are uniform over radius and angle within `k_max`, which puts more of them near the
    beam, where diffuse scattering is; intensities lie log-uniformly within a factor of four above
    `cutoff`, since noise is mistaken for a disk only near the threshold. Shape (K,) → (K + n_max,).
    """
    k_number, k_radius, k_angle, k_intensity = jax.random.split(key, 4)
    number = jax.random.poisson(k_number, rate)
    radius = jax.random.uniform(k_radius, (n_max,), minval=0.1 * k_max, maxval=k_max)
    angle = jax.random.uniform(k_angle, (n_max,), maxval=2 * jnp.pi)
    intensity = cutoff * 4.0 ** jax.random.uniform(k_intensity, (n_max,))
    mask = jnp.arange(n_max) < number
    join = lambda a, b: jnp.concatenate([a, b])  # noqa: E731
    return Disks(
        join(disks.qx, radius * jnp.cos(angle)),
        join(disks.qy, radius * jnp.sin(angle)),
        join(disks.intensity, jnp.where(mask, intensity, 0.0)),
        join(disks.mask, mask),
    )


def jitter_positions(key: PRNGKeyArray, disks: Disks, sigma: Float[ArrayLike, ""]) -> Disks:
    """Move each disk by a normal error of standard deviation `sigma` [1/Å] in x and in y."""
    dx, dy = sigma * jax.random.normal(key, (2, *disks.qx.shape))
    return disks._replace(qx=disks.qx + dx, qy=disks.qy + dy)


def miscalibrate(
    key: PRNGKeyArray, disks: Disks, centre: float, scale: float, ellipticity: float
) -> Disks:
    """Shift, scale and stretch a pattern by calibration errors of these standard deviations.

    `centre` in 1/Å; `scale` and `ellipticity` relative. The stretch is the symmetric traceless
    matrix [[e1, e2], [e2, -e1]] added to the identity.
    """
    shift_key, scale_key, stretch_key = jax.random.split(key, 3)
    shift = centre * jax.random.normal(shift_key, (2,))
    factor = 1.0 + scale * jax.random.normal(scale_key)
    e1, e2 = ellipticity * jax.random.normal(stretch_key, (2,))
    qx = factor * ((1 + e1) * disks.qx + e2 * disks.qy) + shift[0]
    qy = factor * (e2 * disks.qx + (1 - e1) * disks.qy) + shift[1]
    return disks._replace(qx=qx, qy=qy)


def within(disks: Disks, reach: Float[ArrayLike, ""]) -> Disks:
    """Lose the disks beyond the radius `reach` [1/Å]."""
    inside = disks.mask & (disks.qx**2 + disks.qy**2 <= reach**2)
    return disks._replace(mask=inside, intensity=jnp.where(inside, disks.intensity, 0.0))


def keep_strongest(disks: Disks, n_disks: int, k_max: Float[ArrayLike, ""]) -> Disks:
    """The `n_disks` strongest disks within `k_max` [1/Å], the largest intensity scaled to one.

    Fewer disks than `n_disks` are padded.
    """
    kept = _strongest(within(disks, k_max), n_disks)
    return kept._replace(intensity=kept.intensity / jnp.maximum(kept.intensity[0], 1e-30))


def _strongest(disks: Disks, n_disks: int) -> Disks:
    """The `n_disks` strongest disks, strongest first, padded where there are fewer."""
    short = max(0, n_disks - len(disks.qx))
    lengthen = lambda x: jnp.pad(x, (0, short))  # noqa: E731
    value, index = jax.lax.top_k(lengthen(jnp.where(disks.mask, disks.intensity, 0.0)), n_disks)
    mask = value > 0
    take = lambda q: jnp.where(mask, lengthen(q)[index], 0.0)  # noqa: E731
    return Disks(take(disks.qx), take(disks.qy), jnp.where(mask, value, 0.0), mask)


def acquire(
    key: PRNGKeyArray,
    disks: Disks,
    config: Acquisition,
    n_disks: int,
    k_max: Float[ArrayLike, ""],
) -> Disks:
    """One detected pattern from one simulated one: shape (K,) in, (n_disks,) out, `k_max` [1/Å]
    being how far out disks are seen. `overlap` comes before it.
    """
    return keep_strongest(detect(key, disks, config, k_max)[0], n_disks, k_max)


def exposure_told(
    key: PRNGKeyArray, cutoff: Float[ArrayLike, ""], config: Acquisition
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """What a scan tells of the weakest disk that is detected, truly `cutoff`, and of the incident
    beam, 0 where it tells nothing: both as shares of the true beam.
    """
    scatter_key, known_key = jax.random.split(jax.random.fold_in(key, 2 << 20))
    limit, beam = jnp.exp(jnp.array([0.2, 0.1]) * jax.random.normal(scatter_key, (2,)))
    known = jax.random.bernoulli(known_key, config.beam_known)
    return cutoff * limit, jnp.where(known, beam, 0.0)


def detect(
    key: PRNGKeyArray, disks: Disks, config: Acquisition, k_max: Float[ArrayLike, ""]
) -> tuple[Disks, Float[Array, ""]]:
    """The detected disks of a simulated pattern, and the weakest share of the beam that is.

    The order is the microscope's: intensities as they leave the specimen, counting, detection,
    calibration. `k_max` [1/Å] is how far out disks are seen.
    """
    keys = jax.random.split(key, 13)
    disks = damp(disks, draw(keys[12], config.damping))
    disks = scatter_intensities(keys[0], disks, draw(keys[1], config.intensity_scatter))
    disks = count_electrons(
        keys[2], disks, draw(keys[3], config.dose, log=True), draw(keys[4], config.background)
    )
    n_left = min(4, len(disks.intensity))
    fourth = jax.lax.top_k(jnp.where(disks.mask, disks.intensity, 0.0), n_left)[0][-1]
    # a hair below it, since it may be computed a second time and rounded otherwise
    cutoff = jnp.minimum(draw(keys[5], config.cutoff, log=True), jnp.maximum(0.999 * fourth, 1e-9))
    limit = _raised(cutoff, disks, draw(jax.random.fold_in(keys[5], 1), config.glare))
    disks = cut_weak(miss_disks(keys[6], disks, draw(keys[7], config.missed)), limit)
    if config.false_rate[1] > 0:
        rate = draw(keys[8], config.false_rate)
        disks = add_false_disks(keys[9], disks, rate, cutoff, k_max)
    jitter_key, jitter_range_key = jax.random.split(keys[10])
    disks = jitter_positions(jitter_key, disks, draw(jitter_range_key, config.position_jitter))
    disks = miscalibrate(keys[11], disks, config.centre, config.scale, config.ellipticity)
    return disks, cutoff
