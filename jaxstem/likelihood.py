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
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstem import so3
from jaxstem.kinematic import excitation_error, expected_intensity
from jaxstem.lanes import (
    LANES,
    MOST_OF_TWO,
    filled,
    fold,
    log_of_rows,
    radius,
    totals_of_rows,
    turned,
)

# what a program does several times is traced once; the compiler sees no difference
_traced_once = functools.partial(jax.jit, static_argnames="config")


@dataclass(frozen=True)
class LikelihoodConfig:
    """The measurement's statistics and the search's steps.

    thickness: lowest and highest [Å], `n_thicknesses` between them, evenly in the logarithm;
    n_likely: how many of them the later steps follow; shapes: widths σ [1/Å] of Gaussian shape
    functions that stand for thin, bent or mosaic crystals; semi_angle [mrad] of the illumination;
    n_reflections: those nearest to excitation that are simulated; steps [degrees]: of the tilt
    lattices, one after the other, two at least; position_sigma [1/Å];
    intensity_scatter: of ln I about the forward model; noise_at_limit: relative noise of a disk at
    the detection limit; false_rate: false disks a pattern; false_decay: by how much ln I of a false
    disk exceeds the limit on average; rare_false: density per nat of false disks far above it;
    detection: the most that a reflection can be certain to be found.
    """

    thickness: tuple[float, float] = (20.0, 400.0)
    n_thicknesses: int = 16
    n_likely: int = 8
    shapes: tuple[float, ...] = (0.02, 0.035)
    semi_angle: float = 1.5
    n_reflections: int = 32
    steps: tuple[float, ...] = (0.6, 0.3, 0.15, 0.07)
    position_sigma: float = 0.012
    intensity_scatter: float = 0.25
    noise_at_limit: float = 0.35
    false_rate: float = 2.0
    false_decay: float = 0.5
    rare_false: float = 0.007
    detection: float = 0.97

    def thicknesses(self) -> Float[Array, " T"]:
        """The grid of thicknesses [Å]."""
        low, high = jnp.log(self.thickness[0]), jnp.log(self.thickness[1])
        return jnp.exp(jnp.linspace(low, high, self.n_thicknesses))

    @property
    def damping_angle(self) -> float:
        """Semi-angle [mrad] by which fringes are damped."""
        return max(self.semi_angle, LEAST_CONE)


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


def two_beam_intensity(
    s: Float[Array, "..."],
    inverse_extinction: Float[Array, "..."],
    q: Float[Array, "..."],
    thickness: Float[Array, "..."],
    semi_angle: float,
) -> Float[Array, "..."]:
    """I(s, t) of the module's docstring, a share of the incident beam.

    s, 1/ξ and q in 1/Å, thickness in Å, semi-angle in mrad. For a reflection that the cone cuts
    exactly (|s| < α q) the fringes hardly vary, and the formula gives the undamped value.
    """
    width = jnp.sqrt(s**2 + inverse_extinction**2)
    spread = 2 * jnp.pi * thickness * (s / width) * (1e-3 * semi_angle) * q
    damping = jnp.square(jnp.square(jnp.maximum(1 - spread**2 / 32, 0.0)))
    fringes = 1 - cos_turns(thickness * width) * damping
    return 0.5 * (inverse_extinction / width) ** 2 * fringes


def kinematic_intensity(
    s: Float[Array, "..."], inverse_extinction: Float[Array, "..."], sigma: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Kinematic intensity, a share of the incident beam, with a Gaussian shape of width `sigma`.

    s, 1/ξ and σ in 1/Å. The width is that of a foil of thickness t = 0.4 / σ, whose maximum
    (π t / ξ)² is (Hirsch et al., 1965, ch. 4).
    """
    return (0.4 * jnp.pi * inverse_extinction / sigma) ** 2 * jnp.exp(-0.5 * (s / sigma) ** 2)


LEAST_CONE = 1.0
"""Semi-angle [mrad] by which fringes are damped even if the illumination is more parallel: those of
two-beam theory are not sharp enough to be trusted. (Of 2,048 Bloch-wave patterns with parallel
illumination 86.2 % come out within 5°, 84.7 % with 0.5 mrad and 85.4 % with none.)
"""


LEAST_SHARE = 1e-9
"""Share of the incident beam that is added to all intensities, so that they have a logarithm."""


def cos_turns(turns: Float[Array, "..."]) -> Float[Array, "..."]:
    """cos(2 π u) to within 2e-4: the Taylor polynomial in u - round(u), ten times as fast as `cos`
    on a processor, and all that fringes of an approximate theory deserve.
    """
    square = (turns - jnp.round(turns)) ** 2
    terms = [(-1) ** n * (2 * math.pi) ** (2 * n) / math.factorial(2 * n) for n in range(7)]
    return jnp.polyval(jnp.asarray(terms[::-1], square.dtype), square)


def limit_at(
    q: Float[Array, "..."], log_limit: Float[Array, " n_radii"], k_max: float
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


@functools.partial(jax.jit, static_argnames=("k_max", "config"))
def pair(
    observed: Observed,
    qx: Float[Array, " M"],
    qy: Float[Array, " M"],
    log_expected: Float[Array, " M"],
    k_max: float,
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


@_traced_once
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
    odds = found_odds(own.intensity, log_limit, offset[..., None, :], config)
    instead = jnp.exp(gain - 1.0) * (density * (1.0 + odds))
    found = log_of_rows(jnp.where(paired, jnp.clip(instead, 1.0, MOST_OF_TWO), 1.0))
    odds = found_odds(everything.intensity, everything.log_limit, offset[..., None], config)
    present = log_of_product(1.0 + jnp.where(everything.inside, odds, 0.0), 1 - config.detection)
    return found - present - 0.5 * (offset / incident_sigma) ** 2


def log_of_product(factors: Float[Array, "... M"], least: float) -> Float[Array, "..."]:
    """Logarithm of the product of factors between 1 and 1 / `least`.

    As many are multiplied before a logarithm is taken as a number of single precision holds.
    """
    most = math.floor(-80.0 / math.log(least))
    folded = fold(factors, max(LANES, math.ceil(factors.shape[-1] / most)), 1.0)
    return jnp.log(folded.prod(axis=-2)).sum(axis=-1)


def found_odds(
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


UNLIKELY = -1e4
"""Log-likelihood [nat] of what is given no chance."""

LATTICE = tuple((x, y) for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0))
"""Nine tilts around a candidate, in units of a step."""


def summit(values: Float[Array, " 9"]) -> Float[Array, " 2"]:
    """Where the largest of the values on `LATTICE` is, in units of a step.

    If that is the middle one, the summit of the parabolas through it along both axes.
    """
    best = jnp.argmax(values)
    rise = 0.5 * jnp.stack([values[7] - values[1], values[5] - values[3]])
    bend = jnp.stack([values[7] + values[1], values[5] + values[3]]) - 2 * values[4]
    parabola = jnp.clip(-rise / jnp.minimum(bend, -1e-6), -0.5, 0.5)
    return jnp.where(best == 4, parabola, jnp.asarray(LATTICE, values.dtype)[best])


class Ascent(NamedTuple):
    """What a candidate's climb needs, the same from its first step to its verdict.

    orientation: where it begins; turn: about the beam [rad], which fits the disks best. Of the
    reflections near excitation: x, y, q, s and inverse_extinction [1/Å], log_limit: ln of the
    weakest share that is found there, inside: whether they lie within the detector's range. Of the
    disks: pairing, log_share; incident_sigma as in `Observed`.
    """

    orientation: Float[Array, "3 3"]
    turn: Float[Array, ""]
    x: Float[Array, " M"]
    y: Float[Array, " M"]
    q: Float[Array, " M"]
    s: Float[Array, " M"]
    inverse_extinction: Float[Array, " M"]
    log_limit: Float[Array, " M"]
    inside: Bool[Array, " M"]
    pairing: Pairing
    log_share: Float[Array, " K"]
    incident_sigma: Float[Array, ""]


class Place(NamedTuple):
    """Where a climb has come: tilt [rad] from its beginning, the log-likelihood [nat] there, as far
    as the last step saw it, and for each thickness the most when it was looked at last.
    """

    tilt: Float[Array, " 2"]
    log_likelihood: Float[Array, ""]
    by_thickness: Float[Array, " T"]


def begin(
    orientation: Float[Array, "3 3"],
    observed: Observed,
    g: Float[Array, "N 3"],
    inverse_extinction: Float[Array, " N"],
    wavelength: float,
    k_max: float,
    config: LikelihoodConfig,
) -> Ascent:
    """The beginning of a climb from `orientation`; see `polish`.

    Positions hardly move with the tilt, so that disks and reflections are paired once, and the
    crystal is turned about the beam to fit them.
    """
    reach = 0.006 + jnp.deg2rad(max(config.steps)) * 0.5
    likely = expected_intensity(
        excitation_error(turned(g, orientation), wavelength), inverse_extinction, reach
    )
    _, near = jax.lax.top_k(likely, min(config.n_reflections, len(likely)))
    g, inverse_extinction = g[near], inverse_extinction[near]

    g_lab = turned(g, orientation)
    x, y, q = g_lab[:, 0], g_lab[:, 1], radius(g_lab[:, 0], g_lab[:, 1])
    s = excitation_error(g_lab, wavelength)
    log_envelope = jnp.log(expected_intensity(s, inverse_extinction, 0.003) + 1e-9)
    pairing, turn = aligned(pair(observed, x, y, log_envelope, k_max, config), x, y, config)
    # odd numbers of pairs make the loops over them slow
    pairing, log_share = jax.tree.map(filled, (pairing, observed.log_share))
    limit = limit_at(q, observed.log_limit, k_max)
    return Ascent(
        orientation,
        turn,
        x,
        y,
        q,
        s,
        inverse_extinction,
        limit,
        q <= k_max,
        pairing,
        log_share,
        observed.incident_sigma,
    )


def value(
    ascent: Ascent,
    tilt: Float[Array, "A 2"],
    thickness: Float[Array, " T"],
    config: LikelihoodConfig,
) -> Float[Array, "A H"]:
    """The likelihood [nat] of tilts [rad] by thicknesses [Å], then by the kinematic shapes."""
    own, limit, inside = ascent.pairing.reflection, ascent.log_limit, ascent.inside
    strength, q = ascent.inverse_extinction, ascent.q
    s = ascent.s + tilt[:, 1:] * ascent.x - tilt[:, :1] * ascent.y
    s_own, strength_own, semi_angle = s[:, own], strength[own, None], config.damping_angle

    def judged(pairs: Float[Array, "... K H"], everything: Float[Array, "... H M"]):
        return log_likelihood(
            ascent.pairing,
            ascent.log_share,
            Expected(pairs + LEAST_SHARE, limit[own], inside[own]),
            Expected(everything + LEAST_SHARE, limit, inside),
            ascent.incident_sigma,
            config,
        )

    by_thickness = judged(
        two_beam_intensity(s_own[..., None], strength_own, q[own, None], thickness, semi_angle),
        two_beam_intensity(s[:, None], strength, q, thickness[:, None], semi_angle),
    )
    if not config.shapes:
        return by_thickness
    # apart and with the tilts as hypotheses, for shapes are too few to fill a register
    shapes = jnp.asarray(config.shapes)[:, None, None]
    by_shape = judged(
        kinematic_intensity(s_own.T, strength_own, shapes),
        kinematic_intensity(s, strength, shapes),
    )
    return jnp.concatenate([by_thickness, by_shape.T], axis=1)


def start(config: LikelihoodConfig, dtype: jnp.dtype) -> Place:
    """Where a climb begins, before its first step."""
    unknown = jnp.full(config.n_thicknesses, UNLIKELY, dtype)
    return Place(jnp.zeros(2, dtype), jnp.asarray(UNLIKELY, dtype), unknown)


def step(ascent: Ascent, place: Place, number: int, config: LikelihoodConfig) -> Place:
    """The step of this number: to the best of nine tilts.

    The first (0) is over every other thickness, the second over all, the others over the few that
    are likeliest by then.
    """
    thicknesses, width = config.thicknesses(), math.radians(config.steps[number])
    if number < 2:
        chosen = jnp.arange(1, len(thicknesses), 2) if number == 0 else jnp.arange(len(thicknesses))
    else:
        chosen = jax.lax.top_k(place.by_thickness, config.n_likely)[1]
    lattice = jnp.asarray(LATTICE, place.tilt.dtype)
    values = value(ascent, place.tilt + width * lattice, thicknesses[chosen], config)
    total = jax.nn.logsumexp(values, axis=1)
    most = values[:, : len(chosen)].max(axis=0)
    return Place(
        place.tilt + width * summit(total),
        total.max() - math.log(values.shape[1]),
        place.by_thickness.at[chosen].set(most),
    )


def verdict(ascent: Ascent, tilt: Float[Array, " 2"], config: LikelihoodConfig) -> Polished:
    """The end of a climb: the likelihood over all hypotheses."""
    by_hypothesis = value(ascent, tilt[None], config.thicknesses(), config)
    total = jax.nn.logsumexp(by_hypothesis) - math.log(by_hypothesis.size)
    return Polished(orientation_at(ascent, tilt), total, jnp.full_like(total, jnp.nan))


def orientation_at(ascent: Ascent, tilt: Float[Array, " 2"]) -> Float[Array, "3 3"]:
    """The orientation to which a climb has come."""
    return ascent.orientation @ so3.rotation_vector_to_matrix(jnp.append(tilt, ascent.turn))


def polish(
    orientation: Float[Array, "3 3"],
    observed: Observed,
    g: Float[Array, "N 3"],
    inverse_extinction: Float[Array, " N"],
    wavelength: float,
    k_max: float,
    config: LikelihoodConfig,
) -> Polished:
    """Climb the two-beam likelihood from `orientation`, at most about a degree away.

    `g` [1/Å] and `inverse_extinction` [1/Å] are all reflections of the crystal (padding: an inverse
    extinction of 0). The verdict is over all hypotheses.
    """
    ascent = begin(orientation, observed, g, inverse_extinction, wavelength, k_max, config)
    place = start(config, orientation.dtype)
    for number in range(len(config.steps)):
        place = step(ascent, place, number, config)
    return verdict(ascent, place.tilt, config)


@_traced_once
def aligned(
    pairing: Pairing, x: Float[Array, " M"], y: Float[Array, " M"], config: LikelihoodConfig
) -> tuple[Pairing, Float[Array, ""]]:
    """Pairs after the crystal is turned about the beam to fit them best, and the angle [rad].

    `x`, `y` [1/Å] are where the reflections lie; least squares with Student's weights.
    """
    own = pairing.reflection
    x, y = x[own], y[own]
    far = (pairing.dx**2 + pairing.dy**2) / (3 * config.position_sigma**2)
    weight = jnp.where(pairing.paired, 1.0 / (1.0 + far), 0.0)
    turn = (weight * (pairing.dx * y - pairing.dy * x)).sum()
    turn /= (weight * (x**2 + y**2)).sum() + 1e-6
    dx, dy = pairing.dx - turn * y, pairing.dy + turn * x
    closer = log_position(dx, dy, config) - log_position(pairing.dx, pairing.dy, config)
    return pairing._replace(gain=pairing.gain + closer, dx=dx, dy=dy), turn
