# SPDX-License-Identifier: GPL-3.0-or-later
"""How probable a pattern's disks are, given an orientation.

The forward model here is two-beam theory at a definite thickness t, averaged over the illumination
cone: a reflection g with excitation error s and extinction distance ξ holds

    I(s, t) = (1 / ξ²) / w² · (1 - cos(2 π t w) D) / 2,    w² = s² + 1 / ξ²

of the incident beam. D is what the cone leaves of the fringes: across a disk of semi-angle α the
excitation error varies by ± α q, the phase of a fringe by x = 2 π t (s / w) α q, and the mean of
the cosine over a disk is 2 J1(x) / x, here (1 - x² / 32)⁴ up to its zero, which begins alike and
costs no exponential (Hirsch et al., Electron Microscopy of Thin Crystals, 1965, ch. 8; J. C. H.
Spence & J. M. Zuo, Electron Microdiffraction, 1992, ch. 4).
Thickness is not known, so the probability is summed over a grid of thicknesses: what counts against
an orientation is that *no* thickness explains its intensities. Crystals that are thin, bent or
mosaic have no fringes; for them a few kinematic hypotheses join the sum, intensities
(π t / ξ)² exp(-s² / 2 σ²) with t = 0.4 / σ.

The measurement: every reflection expected above the detection limit is found with some probability,
positions scatter a little and log intensities too, both with heavy tails, and any disk may be
false. The detection limit depends on the radius, because the diffuse background does.

Shapes: `K` measured disks, `M` reflections near a candidate, `A` tilts, `T` thicknesses.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxstem.runtime.reductions import LANES, MOST_OF_TWO, fold, log_of_rows, radius, totals_of_rows
from jaxstem.verification.config import LikelihoodConfig

# what a program does several times is traced once; the compiler sees no difference
traced_once = functools.partial(jax.jit, static_argnames="config")


class Observed(NamedTuple):
    """What the likelihood needs of a measured pattern.

    qx, qy [1/Å]; log_share: logarithm of the intensity as a share of the incident beam; mask;
    log_limit: of the weakest share that is found, at radii evenly spaced from 0 to k_max;
    incident_sigma: how well the logarithm of the incident intensity is known.
    """

    qx: Float[Array, " K"]
    qy: Float[Array, " K"]
    log_share: Float[Array, " K"]
    mask: Bool[Array, " K"]
    log_limit: Float[Array, " n_radii"]
    incident_sigma: Float[Array, ""]


class Polished(NamedTuple):
    """An orientation at the summit of its likelihood [nat], and its thickness [Å] or NaN."""

    orientation: Float[Array, "3 3"]
    log_likelihood: Float[Array, ""]
    thickness: Float[Array, ""]


def limit_at(
    q: Float[ArrayLike, "..."], log_limit: Float[ArrayLike, " n_radii"], k_max: Float[ArrayLike, ""]
) -> Float[Array, "..."]:
    """ln of the detection limit at radius q, interpolated; `q`, `k_max` in 1/Å."""
    place = jnp.clip(q / k_max, 0.0, 1.0) * (len(log_limit) - 1)
    below = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, len(log_limit) - 2)
    share = place - below
    return (1 - share) * log_limit[below] + share * log_limit[below + 1]


def log_student(deviation: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log-density of Student's t with three degrees of freedom at unit scale (constant rounded)."""
    return -2.0 * jnp.log1p(deviation**2 / 3.0) - 1.0


def log_position(
    dx: Float[Array, "..."], dy: Float[Array, "..."], config: LikelihoodConfig
) -> Float[Array, "..."]:
    """Log-density [log(1 / 1/Å²)] of a disk measured this far [1/Å] from its reflection.

    Student's t in two dimensions with three degrees of freedom (S. Kotz & S. Nadarajah,
    Multivariate t Distributions, 2004, ch. 1): uneven filling shifts the centre of some disks.
    """
    sigma2 = config.position_sigma**2
    return -2.5 * jnp.log1p((dx**2 + dy**2) / (3 * sigma2)) - jnp.log(2 * jnp.pi * sigma2)


REACH = 5.0
"""How far from its reflection, in position sigmas, a disk may be measured."""


class Pairing(NamedTuple):
    """The reflection that explains each measured disk, if any.

    reflection: its index; gain: log-probability of the disk's position over that of a false disk
    [nat]; paired; dx, dy: measured minus predicted position [1/Å].
    """

    reflection: Int[Array, " K"]
    gain: Float[Array, " K"]
    paired: Bool[Array, " K"]
    dx: Float[Array, " K"]
    dy: Float[Array, " K"]


@traced_once
def pair(
    observed: Observed,
    qx: Float[Array, " M"],
    qy: Float[Array, " M"],
    log_expected: Float[Array, " M"],
    k_max: Float[ArrayLike, ""],
    config: LikelihoodConfig,
) -> Pairing:
    """Give each disk to the reflection that explains it best; a reflection explains one disk.

    `log_expected` is a rough ln I, known to a factor of e: it decides between reflections that lie
    at the same place. Reflections beyond `k_max` [1/Å] explain nothing.
    """
    dx, dy = observed.qx[:, None] - qx, observed.qy[:, None] - qy
    limit = limit_at(radius(observed.qx, observed.qy), observed.log_limit, k_max)
    above = jnp.maximum(observed.log_share - limit, 0.0) / config.false_decay
    decay = jnp.logaddexp(-above - jnp.log(config.false_decay), jnp.log(config.rare_false))
    false = jnp.log(config.false_rate / (jnp.pi * k_max**2)) + decay
    gain = log_position(dx, dy, config) - false[:, None]
    worth = gain + log_student(observed.log_share[:, None] - log_expected)
    near = dx**2 + dy**2 < (REACH * config.position_sigma) ** 2
    inside = qx**2 + qy**2 <= k_max**2
    worth = jnp.where(near & inside & observed.mask[:, None], worth, -1e3)
    best = jnp.argmax(worth, axis=1)
    take = lambda values: jnp.take_along_axis(values, best[:, None], axis=1)[:, 0]  # noqa: E731
    own = take(worth)
    index = jnp.arange(len(own))
    ahead = (own > own[:, None]) | ((own == own[:, None]) & (index < index[:, None]))
    outdone = (ahead & (best == best[:, None])).any(axis=1)
    return Pairing(best, take(gain), (own > -12.0) & ~outdone, take(dx), take(dy))


class Expected(NamedTuple):
    """What a forward model says of some reflections.

    intensity: shares of the incident beam, above 0, its axes as `log_likelihood` says; log_limit:
    ln of the weakest share that is found where the reflection lies; inside: whether it lies within
    the detector's range.
    """

    intensity: Float[Array, "..."]
    log_limit: Float[Array, " M"]
    inside: Bool[Array, " M"]


@traced_once
def log_likelihood(
    pairing: Pairing,
    log_share: Float[Array, " K"],
    own: Expected,
    everything: Expected,
    incident_sigma: Float[Array, ""],
    config: LikelihoodConfig,
) -> Float[Array, "... H"]:
    """Log-probability [nat] of a pattern by each of `H` hypotheses relative to all its disks being
    false.

    `log_share` is measured of each disk; `own` are the reflections paired with the disks, with
    intensities (..., K, H), `everything` all that count, with intensities (..., H, M); those not
    inside the detector's range do not. The incident intensity is known to `incident_sigma` in its
    logarithm; within that the factor that fits the pairs best is taken, and paid for.

    A sum over everything that would be absent, and one over the pairs of what being found instead
    is worth: the many reflections without a disk cost one logarithm for several. Hypotheses lie
    along the last axis of what is summed over the pairs, and reflections along that of the others,
    since few pairs would not fill a register.
    """
    share, gain, log_limit = (x[:, None] for x in (log_share, pairing.gain, own.log_limit))
    paired = (pairing.paired & own.inside)[:, None]
    margin = jnp.minimum(jnp.log(own.intensity) - log_limit, 20.0)
    noise = config.noise_at_limit**2 * jnp.exp(log_limit) / own.intensity
    precision = jax.lax.rsqrt(config.intensity_scatter**2 + jnp.minimum(noise, 1.0))
    deviation = (share - log_limit - margin) * precision
    weight = jnp.where(paired, precision / (1.0 + deviation**2 / 3.0), 0.0)
    pull, stiffness = totals_of_rows(weight * deviation, weight * precision)
    offset = pull / (stiffness + 1.0 / incident_sigma**2)

    # Student's density of the deviation times the odds against absence, in one logarithm
    rest = deviation - offset[..., None, :] * precision
    density = precision / jnp.square(1.0 + rest**2 / 3.0)
    odds = _found_odds(own.intensity, log_limit, offset[..., None, :], config)
    instead = jnp.exp(gain - 1.0) * (density * (1.0 + odds))
    found = log_of_rows(jnp.where(paired, jnp.clip(instead, 1.0, MOST_OF_TWO), 1.0))
    odds = _found_odds(everything.intensity, everything.log_limit, offset[..., None], config)
    present = log_of_product(1.0 + jnp.where(everything.inside, odds, 0.0), 1 - config.detection)
    return found - present - 0.5 * (offset / incident_sigma) ** 2


def log_of_product(factors: Float[Array, "... M"], least: float) -> Float[Array, "..."]:
    """Logarithm of the product of factors between 1 and 1 / `least`.

    As many are multiplied before a logarithm is taken as a number of single precision holds.
    """
    most = math.floor(-80.0 / math.log(least))
    folded = fold(factors, max(LANES, math.ceil(factors.shape[-1] / most)), 1.0)
    return jnp.log(folded.prod(axis=-2)).sum(axis=-1)


def _found_odds(
    intensity: Float[Array, "..."],
    log_limit: Float[Array, "..."],
    offset: Float[Array, "..."],
    config: LikelihoodConfig,
) -> Float[Array, "..."]:
    """Odds that reflections are found, with `offset` added to their ln I: a logistic curve, whose
    slope of four is that of a normal one where the noise is as large as at the limit.
    """
    ratio = jnp.exp(offset) * (intensity * jnp.exp(-log_limit))
    odds = jnp.square(jnp.square(jnp.minimum(ratio, 1e4)))
    return jnp.minimum(odds, config.detection / (1.0 - config.detection))
