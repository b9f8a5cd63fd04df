# SPDX-License-Identifier: GPL-3.0-or-later
"""Candidates judged by the counts at the places that they predict, disks found there or not.

A list of disks says nothing of the places where a disk was expected and a little light is. So the
light within the aperture's image about each predicted place is measured in the pattern, above its
background and with its error: forced photometry, as astronomers call it. A candidate is then worth

    ln p(counts | candidate) / p(counts | nothing but background)

which is a sum over its reflections, so that candidates and crystals can be compared whatever they
predict. Intensities are those of two-beam theory (`diffraction.two_beam`), with the thickness not
known and summed over; they are right to some tens of per cent, and to no less than a share of the
beam, for neighbouring reflections err together. Deviations have Student's tails, and a few places
hold anything.

Shapes: `M` reflections near a candidate, `A` tilts, `T` thicknesses, `H` × `W` places at which sums
over the aperture are kept, `h` × `w` blocks of the background.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxstem.diffraction.geometry import excitation_error
from jaxstem.diffraction.two_beam import expected_intensity, two_beam_intensity
from jaxstem.files.light import Detector, Light, decoded
from jaxstem.runtime.reductions import radius, turned
from jaxstem.verification.climb import LATTICE, summit
from jaxstem.verification.config import CountsConfig
from jaxstem.verification.ranking import Forward
from jaxstem.verification.search import Pattern


def _corners(
    row: Float[Array, "..."], column: Float[Array, "..."], shape: tuple[int, int]
) -> list[tuple[Array, Array]]:
    """Flat indices of the four places about each, and their shares by linear interpolation."""
    height, width = shape
    i = jnp.clip(jnp.floor(row).astype(jnp.int32), 0, height - 2)
    j = jnp.clip(jnp.floor(column).astype(jnp.int32), 0, width - 2)
    u, v = jnp.clip(row - i, 0.0, 1.0), jnp.clip(column - j, 0.0, 1.0)
    first = i * width + j
    shares = ((0, (1 - u) * (1 - v)), (1, (1 - u) * v), (width, u * (1 - v)), (width + 1, u * v))
    return [(first + step, share) for step, share in shares]


class Places(NamedTuple):
    """Where a candidate predicts disks, and what was measured there.

    x, y, q, s and inverse_extinction [1/Å] of the reflections; excess: electrons above background;
    variance: of these, and what theory may always be wrong by, squared; outlier: density of
    anything, and nothing: of the counts if no disk is there, both without what all densities share;
    weight: share of the light that belongs to the reflection, 0 where nothing is seen; beam:
    electrons that the reflection's intensity is a share of.
    """

    x: Float[Array, " M"]
    y: Float[Array, " M"]
    q: Float[Array, " M"]
    s: Float[Array, " M"]
    inverse_extinction: Float[Array, " M"]
    excess: Float[Array, " M"]
    variance: Float[Array, " M"]
    outlier: Float[Array, " M"]
    nothing: Float[Array, " M"]
    weight: Float[Array, " M"]
    beam: Float[Array, " M"]


def _overlap(apart: Float[Array, "..."]) -> Float[Array, "..."]:
    """Share of a disk that another one covers whose centre lies so many diameters away."""
    return jnp.maximum(1.0 - apart, 0.0) * (1.0 - 0.273 * apart)


def excited(
    orientation: Float[Array, "3 3"],
    forward: Forward,
    wavelength: float,
    reach: Float[ArrayLike, ""],
    config: CountsConfig,
) -> tuple[Array, Array, Array, Array]:
    """x, y, s and 1/ξ [1/Å] of the likeliest of a candidate's reflections within `reach` [1/Å]."""
    g = turned(forward.g, orientation)
    s, strength = excitation_error(g, wavelength), forward.inverse_extinction
    if len(s) > config.n_reflections:
        likely = expected_intensity(s, strength, _ENVELOPE)
        likely *= g[:, 0] ** 2 + g[:, 1] ** 2 <= reach**2
        _, near = jax.lax.top_k(likely, config.n_reflections)
        g, s, strength = g[near], s[near], strength[near]
    return g[:, 0], g[:, 1], s, strength


_ENVELOPE = 0.003
"""Width [1/Å] by which excitation errors are blurred where it is asked which disks count."""


def measured(
    x: Float[Array, " M"],
    y: Float[Array, " M"],
    s: Float[Array, " M"],
    inverse_extinction: Float[Array, " M"],
    light: Light,
    detector: Detector,
    incident: Float[ArrayLike, ""],
    reach: Float[ArrayLike, ""],
    config: CountsConfig,
) -> Places:
    """The counts where a candidate predicts disks; `incident` in electrons, `reach` [1/Å] the
    radius beyond which no light comes through.
    """
    shape = light.sums.shape
    row, column = (
        light.centre[i] + detector.to_places[i, 0] * x + detector.to_places[i, 1] * y
        for i in (0, 1)
    )
    q = radius(x, y)
    inside = (row > 0) & (row < shape[0] - 1) & (column > 0) & (column < shape[1] - 1)
    corners = _corners(row, column, shape)
    seen, sums = detector.seen.reshape(-1), light.sums.reshape(-1)
    inside &= (q < reach) & jnp.stack([seen[at] for at, _ in corners]).all(axis=0)
    total = sum(share * decoded(sums[at]) for at, share in corners)

    far = radius(row - light.centre[0], column - light.centre[1]) / detector.radius_step
    base = detector.background[jnp.minimum(jnp.round(far).astype(jnp.int32), _last(detector))]
    # blocks have their middles at (i + 1/2) block - 1/2
    middle = lambda place: (place + 0.5) / detector.block - 0.5  # noqa: E731
    factor = light.factor.reshape(-1)
    blocks = _corners(middle(row), middle(column), light.factor.shape)
    base = base * sum(share * factor[at] for at, share in blocks)

    excess = total - base
    variance = jnp.maximum(total, base) + (config.background_error * base) ** 2
    variance += config.read_noise**2
    outlier = config.outliers / (1.0 - config.outliers) / (_STUDENT * _DECADES)
    outlier = outlier / jnp.maximum(excess, 10.0)
    strong = expected_intensity(s, inverse_extinction, _ENVELOPE)
    apart = radius(x[:, None] - x, y[:, None] - y) / (2.0 * detector.disk)
    share = strong / (strong * _overlap(apart)).sum(axis=1)
    return Places(
        x,
        y,
        q,
        s,
        inverse_extinction,
        excess,
        variance + (config.floor * incident) ** 2,
        outlier,
        _student(excess, jax.lax.rsqrt(variance)) + outlier,
        jnp.where(inside, share, 0.0),
        incident / jnp.maximum(share, 0.2),
    )


_STUDENT = 0.3675
"""Largest density of Student's t with three degrees of freedom."""

_DECADES = 9.7
"""ln of the range of counts over which anything may be: 16,000."""


def _last(detector: Detector) -> int:
    return len(detector.background) - 1


def _student(deviation: Float[Array, "..."], precision: Float[Array, "..."]) -> Float[Array, "..."]:
    """Student's density with three degrees of freedom over `_STUDENT`."""
    return precision / jnp.square(1.0 + (deviation * precision) ** 2 / 3.0)


def log_ratios(
    places: Places,
    tilt: Float[Array, "A 2"],
    thickness: Float[Array, " T"],
    semi_angle: float,
    config: CountsConfig,
) -> Float[Array, "A T"]:
    """ln p(counts | candidate) / p(counts | nothing) [nat] of tilts [rad] by thicknesses [Å]."""
    s = places.s + tilt[:, 1:] * places.x - tilt[:, :1] * places.y
    column = lambda x: x[..., None]  # noqa: E731
    expected = column(places.beam) * two_beam_intensity(
        column(s), column(places.inverse_extinction), column(places.q), thickness, semi_angle
    )
    precision = jax.lax.rsqrt(column(places.variance) + (config.scatter * expected) ** 2)
    density = _student(column(places.excess) - expected, precision) + column(places.outlier)
    # r ** weight, nearly, and without a power
    ratio = 1.0 + column(places.weight) * (density / column(places.nothing) - 1.0)
    return _sum_of_logs(jnp.clip(ratio, 1.0 / _MOST, _MOST))


_MOST = 1e4
"""How much likelier, or less likely, one place can make a candidate."""

_FACTORS = 8
"""Ratios whose product single precision holds."""


def _sum_of_logs(ratio: Float[Array, "... M T"]) -> Float[Array, "... T"]:
    """The sum over the last axis but one of logarithms, of the product of some ratios at once."""
    short = -ratio.shape[-2] % _FACTORS
    fill = [(0, 0)] * (ratio.ndim - 2) + [(0, short), (0, 0)]
    ratio = jnp.pad(ratio, fill, constant_values=1.0)
    parts = ratio.reshape(*ratio.shape[:-2], -1, _FACTORS, ratio.shape[-1])
    product = functools.reduce(jnp.multiply, [parts[..., i, :] for i in range(_FACTORS)])
    return jnp.log(product).sum(axis=-2)


def over_thickness(log_ratio: Float[Array, "... T"]) -> Float[Array, "..."]:
    """The ratio [nat] where all thicknesses are as likely."""
    return jax.nn.logsumexp(log_ratio, axis=-1) - math.log(log_ratio.shape[-1])


def explained_light(
    places: Places,
    tilt: Float[Array, " 2"],
    thickness: Float[Array, " T"],
    semi_angle: float,
    pattern: Pattern,
    incident: Float[ArrayLike, ""],
    config: CountsConfig,
) -> Float[Array, ""]:
    """Share of the light, 0 … 1, that a candidate explains at its likeliest thickness.

    The light is that of the listed disks and what lies at the predicted places; a place explains
    what is expected there, and as much again, for intensities are not better known.
    """
    by_thickness = log_ratios(places, tilt[None], thickness, semi_angle, config)[0]
    s = places.s + tilt[1] * places.x - tilt[0] * places.y
    expected = places.beam * two_beam_intensity(
        s, places.inverse_extinction, places.q, thickness[jnp.argmax(by_thickness)], semi_angle
    )
    there = jnp.maximum(places.excess, 0.0) * places.weight
    explained = jnp.minimum(there, 2.0 * expected * places.weight).sum()
    disks = pattern.observed
    listed = jnp.where(disks.mask, jnp.exp(disks.log_share), 0.0).sum() * incident
    total = jnp.maximum(jnp.maximum(listed, explained), 1.0)
    return explained / total


def climb_by_counts(
    places: Places,
    thickness: Float[Array, " T"],
    semi_angle: float,
    config: CountsConfig,
) -> tuple[Float[Array, " 2"], Float[Array, ""]]:
    """The tilt [rad] at which the counts are likeliest, and how likely [nat]."""
    tilt = jnp.zeros(2, places.x.dtype)
    lattice = jnp.asarray(LATTICE, tilt.dtype)
    for step in config.steps:
        width = math.radians(step)
        values = log_ratios(places, tilt + width * lattice, thickness, semi_angle, config)
        tilt += width * summit(over_thickness(values))
    value = log_ratios(places, tilt[None], thickness, semi_angle, config)
    return tilt, over_thickness(value)[0]
