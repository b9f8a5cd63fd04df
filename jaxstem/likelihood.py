# SPDX-License-Identifier: GPL-3.0-or-later
"""How probable a pattern's disks are, given an orientation.

The forward model here is two-beam theory at a definite thickness t, averaged over the illumination
cone: a reflection g with excitation error s and extinction distance ξ holds

    I(s, t) = (1 / ξ²) / w² · (1 - cos(2 π t w) D) / 2,    w² = s² + 1 / ξ²

of the incident beam. D is what the cone leaves of the fringes: across a disk of semi-angle α the
excitation error varies by ± α q, the phase of a fringe by x = 2 π t (s / w) α q, and the mean of
the cosine over a disk is 2 J1(x) / x, here exp(-x² / 8) (Hirsch et al., Electron Microscopy of Thin
Crystals, 1965, ch. 8; J. C. H. Spence & J. M. Zuo, Electron Microdiffraction, 1992, ch. 4).
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

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxstem import so3
from jaxstem.kinematic import excitation_error, expected_intensity


@dataclass(frozen=True)
class LikelihoodConfig:
    """The measurement's statistics and the search's steps.

    thickness: lowest and highest [Å], `n_thicknesses` between them, evenly in the logarithm;
    shapes: widths σ [1/Å] of Gaussian shape functions that stand for thin, bent or mosaic crystals;
    semi_angle [mrad] of the illumination; n_reflections: those nearest to excitation that are
    simulated; steps [degrees]: of the tilt lattices, one after the other; position_sigma [1/Å];
    intensity_scatter: of ln I about the forward model; noise_at_limit: relative noise of a disk at
    the detection limit; false_rate: false disks a pattern; false_decay: by how much ln I of a false
    disk exceeds the limit on average; rare_false: density per nat of false disks far above it;
    detection: the most that a reflection can be certain to be found.
    """

    thickness: tuple[float, float] = (20.0, 400.0)
    n_thicknesses: int = 16
    shapes: tuple[float, ...] = (0.02, 0.035)
    semi_angle: float = 1.5
    n_reflections: int = 40
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
    fringes = 1 - cos_turns(thickness * width) * jnp.exp(-(spread**2) / 8)
    return 0.5 * (inverse_extinction / width) ** 2 * fringes


def kinematic_intensity(
    s: Float[Array, "..."], inverse_extinction: Float[Array, "..."], sigma: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Kinematic intensity, a share of the incident beam, with a Gaussian shape of width `sigma`.

    s, 1/ξ and σ in 1/Å. The width is that of a foil of thickness t = 0.4 / σ, whose maximum
    (π t / ξ)² is (Hirsch et al., 1965, ch. 4).
    """
    return (0.4 * jnp.pi * inverse_extinction / sigma) ** 2 * jnp.exp(-0.5 * (s / sigma) ** 2)


def hypotheses(
    s: Float[Array, "A M"],
    inverse_extinction: Float[Array, " M"],
    q: Float[Array, " M"],
    config: LikelihoodConfig,
) -> Float[Array, "A T M"]:
    """ln I of each reflection by each thickness of the grid, then by each kinematic shape."""
    s = s[:, None]
    parts = [
        two_beam_intensity(
            s, inverse_extinction, q, config.thicknesses()[:, None], config.semi_angle
        )
    ]
    if config.shapes:
        parts.append(
            kinematic_intensity(s, inverse_extinction, jnp.asarray(config.shapes)[:, None])
        )
    return jnp.log(jnp.concatenate(parts, axis=1) + 1e-9)


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
    """The measured disk that each reflection explains, if any.

    gain: log-probability of its position over that of a false disk [nat]; log_share of the disk;
    paired; dx, dy: measured minus predicted position [1/Å].
    """

    gain: Float[Array, " M"]
    log_share: Float[Array, " M"]
    paired: Bool[Array, " M"]
    dx: Float[Array, " M"]
    dy: Float[Array, " M"]


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
    at the same place.
    """
    dx, dy = observed.qx[:, None] - qx, observed.qy[:, None] - qy
    limit = limit_at(jnp.hypot(observed.qx, observed.qy), observed.log_limit, k_max)
    above = jnp.maximum(observed.log_share - limit, 0.0) / config.false_decay
    decay = jnp.logaddexp(-above - jnp.log(config.false_decay), jnp.log(config.rare_false))
    false = jnp.log(config.false_rate / (jnp.pi * k_max**2)) + decay
    gain = log_position(dx, dy, config) - false[:, None]
    worth = gain + log_student(observed.log_share[:, None] - log_expected)
    near = dx**2 + dy**2 < (REACH * config.position_sigma) ** 2
    inside = qx**2 + qy**2 <= k_max**2
    worth = jnp.where(near & inside & observed.mask[:, None], worth, -1e3)
    best = jnp.argmax(worth, axis=1)
    chosen = (best[:, None] == jnp.arange(len(qx))) & (worth > -12.0)
    worth = jnp.where(chosen, worth, -1e4)
    disk = jnp.argmax(worth, axis=0)
    take = lambda values: jnp.take_along_axis(values, disk[None], axis=0)[0]  # noqa: E731
    return Pairing(take(gain), observed.log_share[disk], chosen.any(axis=0), take(dx), take(dy))


def log_likelihood(
    pairing: Pairing,
    log_intensity: Float[Array, "... M"],
    log_limit: Float[Array, " M"],
    inside: Bool[Array, " M"],
    incident_sigma: Float[Array, ""],
    config: LikelihoodConfig,
) -> Float[Array, "..."]:
    """Log-probability [nat] of a pattern relative to all its disks being false.

    `log_intensity` is the forward model's ln I of each reflection, `log_limit` the detection limit
    where it lies; reflections that are not `inside` the detector's range are not counted. The
    incident intensity is known to `incident_sigma` in its logarithm; within that the factor that
    fits the pairs best is taken, and paid for.
    """
    margin = jnp.minimum(log_intensity - log_limit, 20.0)
    noise = config.noise_at_limit**2 * jnp.exp(-margin)
    sigma = jnp.sqrt(config.intensity_scatter**2 + jnp.minimum(noise, 1.0))
    deviation = (pairing.log_share - log_intensity) / sigma
    weight = jnp.where(pairing.paired, 1.0 / (sigma**2 * (1.0 + deviation**2 / 3.0)), 0.0)
    pull = (weight * (pairing.log_share - log_intensity)).sum(-1, keepdims=True)
    offset = pull / (weight.sum(-1, keepdims=True) + 1.0 / incident_sigma**2)
    deviation -= offset / sigma
    found = jax.nn.sigmoid(1.702 * (margin + offset) / sigma)
    absent = jnp.log1p(-jnp.minimum(found, config.detection))
    present = pairing.gain + log_student(deviation) - jnp.log(sigma)
    each = jnp.where(pairing.paired, jnp.maximum(present, absent), absent)
    penalty = 0.5 * (offset[..., 0] / incident_sigma) ** 2
    return jnp.where(inside, each, 0.0).sum(-1) - penalty


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
    extinction of 0). Each step pairs disks and reflections, turns about the beam to the positions'
    least-squares angle, and takes the best of nine tilts, all thicknesses summed.
    """
    reach = 0.006 + jnp.deg2rad(max(config.steps)) * 0.5
    s = excitation_error(g @ orientation, wavelength)
    likely = expected_intensity(s, inverse_extinction, reach)
    _, near = jax.lax.top_k(likely, min(config.n_reflections, len(likely)))
    g, inverse_extinction = g[near], inverse_extinction[near]
    lattice = jnp.asarray(LATTICE, orientation.dtype)

    def step(orientation, width):
        g_lab = g @ orientation
        x, y, q = g_lab[:, 0], g_lab[:, 1], jnp.hypot(g_lab[:, 0], g_lab[:, 1])
        s = excitation_error(g_lab, wavelength)
        envelope = expected_intensity(s, inverse_extinction, 0.003)
        pairing = pair(observed, x, y, jnp.log(envelope + 1e-9), k_max, config)
        far = (pairing.dx**2 + pairing.dy**2) / (3 * config.position_sigma**2)
        weight = jnp.where(pairing.paired, 1.0 / (1.0 + far), 0.0)
        turn = (weight * (pairing.dx * y - pairing.dy * x)).sum()
        turn /= (weight * q**2).sum() + 1e-6
        dx, dy = pairing.dx - turn * y, pairing.dy + turn * x
        closer = log_position(dx, dy, config) - log_position(pairing.dx, pairing.dy, config)
        pairing = pairing._replace(gain=pairing.gain + closer)
        tilt = width * lattice
        s = s + tilt[:, 1:] * x - tilt[:, :1] * y
        value = log_likelihood(
            pairing,
            hypotheses(s, inverse_extinction, q, config),
            limit_at(q, observed.log_limit, k_max),
            q <= k_max,
            observed.incident_sigma,
            config,
        )
        total = jax.nn.logsumexp(value, axis=1) - jnp.log(value.shape[1])
        best = jnp.argmax(total)
        vector = jnp.append(width * summit(total), turn)
        turned = orientation @ so3.rotation_vector_to_matrix(vector)
        return turned, total[best]

    widths = jnp.deg2rad(jnp.asarray(config.steps, orientation.dtype))
    orientation, value = jax.lax.scan(step, orientation, widths)
    return Polished(orientation, value[-1], jnp.full_like(value[-1], jnp.nan))
