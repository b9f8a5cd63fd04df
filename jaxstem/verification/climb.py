# SPDX-License-Identifier: GPL-3.0-or-later
"""From a candidate to the summit of its likelihood, without derivatives.

Near a candidate a tilt changes excitation errors alone (`search.py`), so that the reflections and
their pairing with disks are gathered once (`Ascent`), and each step compares nine tilts on a
lattice, moves to the summit of the parabola through them and refines the lattice. Between steps
only a `Place` is kept: the tilt and what the likelihood is there.

Shapes: `K` measured disks, `M` reflections near a candidate, `A` tilts, `T` thicknesses.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxstem.diffraction.geometry import excitation_error
from jaxstem.diffraction.two_beam import (
    LEAST_SHARE,
    expected_intensity,
    kinematic_intensity,
    two_beam_intensity,
)
from jaxstem.orientation import rotations
from jaxstem.runtime.reductions import filled, radius, turned
from jaxstem.verification.config import LikelihoodConfig
from jaxstem.verification.likelihood import (
    Expected,
    Observed,
    Pairing,
    Polished,
    limit_at,
    log_likelihood,
    log_position,
    pair,
    traced_once,
)

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


def excited(
    orientation: Float[Array, "3 3"],
    g: Float[Array, "N 3"],
    inverse_extinction: Float[Array, " N"],
    wavelength: float,
    k_max: Float[ArrayLike, ""],
    width: float,
    n_reflections: int,
) -> tuple[Float[Array, "M 3"], Float[Array, " M"]]:
    """Scattering vectors in the lab frame and 1/ξ [1/Å] of the reflections that are likeliest to be
    seen, those beyond `k_max` [1/Å] last; `width` [1/Å] blurs excitation errors.
    """
    g = turned(g, orientation)
    if len(g) <= n_reflections:
        return g, inverse_extinction
    likely = expected_intensity(excitation_error(g, wavelength), inverse_extinction, width)
    likely *= g[:, 0] ** 2 + g[:, 1] ** 2 <= k_max**2
    _, near = jax.lax.top_k(likely, n_reflections)
    return g[near], inverse_extinction[near]


def begin(
    orientation: Float[Array, "3 3"],
    observed: Observed,
    g: Float[Array, "N 3"],
    inverse_extinction: Float[Array, " N"],
    wavelength: float,
    k_max: Float[ArrayLike, ""],
    config: LikelihoodConfig,
) -> Ascent:
    """The beginning of a climb from `orientation`; see `polish`.

    Positions hardly move with the tilt, so that disks and reflections are paired once, and the
    crystal is turned about the beam to fit them.
    """
    width = 0.006 + math.radians(max(config.steps)) * 0.5
    g_lab, inverse_extinction = excited(
        orientation, g, inverse_extinction, wavelength, k_max, width, config.n_reflections
    )
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


def start_value(ascent: Ascent, config: LikelihoodConfig) -> Float[Array, ""]:
    """The log-likelihood [nat] where a climb begins, over every other thickness as in its first
    step.
    """
    values = value(ascent, jnp.zeros((1, 2), ascent.s.dtype), config.thicknesses()[1::2], config)
    return jax.nn.logsumexp(values) - math.log(values.size)


def steps(ascent: Ascent, place: Place, first: int, last: int, config: LikelihoodConfig) -> Place:
    """The steps from the `first` number to before the `last`, each to the best of nine tilts.

    That of number 0 is over every other thickness, the second over all, the others over the few
    that are likeliest by then.
    """
    everything = jnp.arange(config.n_thicknesses)
    for number, chosen in enumerate((everything[1::2], everything)):
        if first <= number < last:
            place = _step(ascent, place, config.steps[number], chosen, config)
    later = config.steps[max(first, 2) : last]
    if not later:
        return place

    def follow(place: Place, size: Float[Array, ""]) -> tuple[Place, None]:
        chosen = jax.lax.top_k(place.by_thickness, config.n_likely)[1]
        return _step(ascent, place, size, chosen, config), None

    # a loop, for each step that is written out takes seconds to compile
    return jax.lax.scan(follow, place, jnp.asarray(later, place.tilt.dtype))[0]


def _step(
    ascent: Ascent,
    place: Place,
    size: Float[ArrayLike, ""],
    chosen: Int[Array, " H"],
    config: LikelihoodConfig,
) -> Place:
    """A step of this size [degrees] over the `chosen` thicknesses."""
    width, lattice = jnp.radians(size), jnp.asarray(LATTICE, place.tilt.dtype)
    values = value(ascent, place.tilt + width * lattice, config.thicknesses()[chosen], config)
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
    return ascent.orientation @ rotations.rotation_vector_to_matrix(jnp.append(tilt, ascent.turn))


def polish(
    orientation: Float[Array, "3 3"],
    observed: Observed,
    g: Float[Array, "N 3"],
    inverse_extinction: Float[Array, " N"],
    wavelength: float,
    k_max: Float[ArrayLike, ""],
    config: LikelihoodConfig,
) -> Polished:
    """Climb the two-beam likelihood from `orientation`, at most about a degree away.

    `g` [1/Å] and `inverse_extinction` [1/Å] are all reflections of the crystal (padding: an inverse
    extinction of 0). The verdict is over all hypotheses.
    """
    ascent = begin(orientation, observed, g, inverse_extinction, wavelength, k_max, config)
    place = start(config, orientation.dtype)
    place = steps(ascent, place, 0, len(config.steps), config)
    return verdict(ascent, place.tilt, config)


@traced_once
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
