# SPDX-License-Identifier: GPL-3.0-or-later
"""Candidates judged by the counts at the places that they predict, disks found there or not.

A list of disks says nothing of the places where a disk was expected and a little light is. So the
light within the aperture's image about each predicted place is measured in the pattern, above its
background and with its error: forced photometry, as astronomers call it. A candidate is then worth

    ln p(counts | candidate) / p(counts | nothing but background)

which is a sum over its reflections, so that candidates and crystals can be compared whatever they
predict. Intensities are those of two-beam theory (`diffraction.two_beam`), with the thickness not
known and summed over; they are right to some tens of per cent, and to no less than a share of the
beam, for neighbouring reflections err together. Deviations have Student's tails (K. L. Lange,
R. J. A. Little & J. M. G. Taylor, J. Am. Stat. Assoc. 84 (1989) 881), and a few places hold
anything.

Shapes: `M` reflections near a candidate, `A` tilts, `T` thicknesses, `H` × `W` places about which
the light is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxstem.diffraction.geometry import excitation_error
from jaxstem.diffraction.two_beam import expected_intensity, two_beam_intensity
from jaxstem.files.light import Detector, Light, decoded_factor
from jaxstem.runtime.reductions import log_of_rows, radius
from jaxstem.verification.climb import LATTICE, excited, summit
from jaxstem.verification.config import CountsConfig
from jaxstem.verification.likelihood import Observed
from jaxstem.verification.ranking import Forward


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


class Reflections(NamedTuple):
    """The likeliest reflections of a candidate.

    x, y, q, s and inverse_extinction [1/Å]; share: of the light at its place that is expected to be
    the reflection's own, for disks may overlap.
    """

    x: Float[Array, " M"]
    y: Float[Array, " M"]
    q: Float[Array, " M"]
    s: Float[Array, " M"]
    inverse_extinction: Float[Array, " M"]
    share: Float[Array, " M"]

    def turned_about_beam(self) -> Reflections:
        """Those of the candidate turned by 180° about the beam: as strong, on the other side."""
        return self._replace(x=-self.x, y=-self.y)


class Places(NamedTuple):
    """What was measured where a candidate predicts disks.

    excess: electrons above background; variance: of these, and what theory may always be wrong by,
    squared; outlier: density of anything, and nothing: of the counts if no disk is there, both
    without what all densities share; weight: share of the light that belongs to the reflection, 0
    where nothing is seen; beam: electrons that the reflection's intensity is a share of.
    """

    reflections: Reflections
    excess: Float[Array, " M"]
    variance: Float[Array, " M"]
    outlier: Float[Array, " M"]
    nothing: Float[Array, " M"]
    weight: Float[Array, " M"]
    beam: Float[Array, " M"]


def _overlap(apart: Float[Array, "..."]) -> Float[Array, "..."]:
    """Share of a disk that another one covers whose centre lies so many diameters away: the lens
    of two circles, to 1 % of a disk, by a parabola.
    """
    return jnp.maximum(1.0 - apart, 0.0) * (1.0 - 0.273 * apart)


_ENVELOPE = 0.003
"""Width [1/Å] by which excitation errors are blurred where it is asked which disks count."""


def likeliest_reflections(
    orientation: Float[Array, "3 3"],
    forward: Forward,
    wavelength: float,
    reach: Float[ArrayLike, ""],
    disk: Float[ArrayLike, ""],
    config: CountsConfig,
) -> Reflections:
    """The reflections of `forward` that a candidate excites most, within `reach` [1/Å]; `disk` is
    the radius of a disk [1/Å], `wavelength` in Å.
    """
    g, strength = excited(orientation, *forward, wavelength, reach, _ENVELOPE, config.n_reflections)
    x, y, s = g[:, 0], g[:, 1], excitation_error(g, wavelength)
    expected = expected_intensity(s, strength, _ENVELOPE)
    apart = radius(x[:, None] - x, y[:, None] - y) / (2.0 * disk)
    share = expected / (expected * _overlap(apart)).sum(axis=1)
    return Reflections(x, y, radius(x, y), s, strength, share)


def measured(
    reflections: Reflections,
    sums: Float[Array, "H W"],
    light: Light,
    detector: Detector,
    incident: Float[ArrayLike, ""],
    reach: Float[ArrayLike, ""],
    config: CountsConfig,
) -> Places:
    """The counts where disks are predicted, from those about all places (`light_everywhere`);
    `incident` in electrons, `reach` [1/Å] the radius beyond which no light comes through.
    """
    shape, of = sums.shape, reflections
    row, column = (
        light.centre[i] + detector.to_places[i, 0] * of.x + detector.to_places[i, 1] * of.y
        for i in (0, 1)
    )
    inside = (row > 0) & (row < shape[0] - 1) & (column > 0) & (column < shape[1] - 1)
    corners = _corners(row, column, shape)
    seen, sums = detector.seen.reshape(-1), sums.reshape(-1)
    inside &= (of.q < reach) & jnp.stack([seen[at] for at, _ in corners]).all(axis=0)
    total = sum(share * sums[at] for at, share in corners)

    far = radius(row - light.centre[0], column - light.centre[1]) / detector.radius_step
    last = len(detector.background) - 1
    base = detector.background[jnp.minimum(jnp.round(far).astype(jnp.int32), last)]
    # blocks have their middles at (i + 1/2) block - 1/2
    middle = lambda place: (place + 0.5) / detector.block - 0.5  # noqa: E731
    factor = light.factor.reshape(-1)
    blocks = _corners(middle(row), middle(column), light.factor.shape)
    base = base * sum(share * decoded_factor(factor[at]) for at, share in blocks)

    excess = (total - base) / detector.found
    variance = jnp.maximum(total, base) + (config.background_error * base) ** 2
    variance += config.read_noise**2
    outlier = config.outliers / (1.0 - config.outliers) / (_STUDENT * _DECADES)
    outlier = outlier / jnp.maximum(excess, 10.0)
    return Places(
        of,
        excess,
        variance + (config.floor * incident) ** 2,
        outlier,
        _student(excess, jax.lax.rsqrt(variance)) + outlier,
        jnp.where(inside, of.share, 0.0),
        incident / jnp.maximum(of.share, 0.2),
    )


_STUDENT = 0.3675
"""Largest density of Student's t with three degrees of freedom."""

_DECADES = 9.7
"""ln of the range of counts over which anything may be: 16,000."""


def _student(deviation: Float[Array, "..."], precision: Float[Array, "..."]) -> Float[Array, "..."]:
    """Student's density with three degrees of freedom over `_STUDENT`."""
    return precision / jnp.square(1.0 + (deviation * precision) ** 2 / 3.0)


def _expected(
    places: Places,
    tilt: Float[Array, "... 2"],
    thickness: Float[Array, " T"],
    semi_angle: float,
) -> Float[Array, "... M T"]:
    """Electrons in the disks by two-beam theory."""
    of, column = places.reflections, lambda x: x[..., None]
    s = of.s + tilt[..., 1:] * of.x - tilt[..., :1] * of.y
    share = two_beam_intensity(
        column(s), column(of.inverse_extinction), column(of.q), thickness, semi_angle
    )
    return column(places.beam) * share


def log_ratios(
    places: Places,
    tilt: Float[Array, "A 2"],
    thickness: Float[Array, " T"],
    semi_angle: float,
    config: CountsConfig,
) -> Float[Array, "A T"]:
    """ln p(counts | candidate) / p(counts | nothing) [nat] of tilts [rad] by thicknesses [Å]; the
    probe's `semi_angle` in mrad.
    """
    ratio, _ = _ratios(places, _expected(places, tilt, thickness, semi_angle), config)
    return log_of_rows(ratio, _FACTORS)


def log_ratios_of_alike(
    alike: Sequence[Places], thickness: Float[Array, " T"], semi_angle: float, config: CountsConfig
) -> Float[Array, "n T"]:
    """`log_ratios`, untilted, of candidates that expect the same and elsewhere: one, and itself
    turned about the beam. What they expect is worked out once.
    """
    still = jnp.zeros(2, alike[0].excess.dtype)
    expected = _expected(alike[0], still, thickness, semi_angle)
    ratios = jnp.stack([_ratios(places, expected, config)[0] for places in alike])
    return log_of_rows(ratios, _FACTORS)


def _ratios(
    places: Places, expected: Float[Array, "... M T"], config: CountsConfig
) -> tuple[Float[Array, "... M T"], Float[Array, "... M T"]]:
    """How much likelier each place's counts are than if nothing were there, and the precision
    [1/electrons], theory's scatter included, by which they are compared with what is expected.
    """
    column = lambda x: x[..., None]  # noqa: E731
    precision = jax.lax.rsqrt(column(places.variance) + (config.scatter * expected) ** 2)
    density = _student(column(places.excess) - expected, precision) + column(places.outlier)
    # r ** weight, nearly, and without a power
    ratio = 1.0 + column(places.weight) * (density / column(places.nothing) - 1.0)
    return jnp.clip(ratio, 1.0 / _MOST, _MOST), precision


_MOST = 1e4
"""How much likelier, or less likely, one place can make a candidate."""

_FACTORS = 8
"""Ratios whose product single precision holds."""


def over_thickness(log_ratio: Float[Array, "... T"]) -> Float[Array, "..."]:
    """The ratio [nat] where all thicknesses are as likely."""
    return jax.nn.logsumexp(log_ratio, axis=-1) - math.log(log_ratio.shape[-1])


class Climbed(NamedTuple):
    """Where the counts are likeliest: tilt [rad], and the ratio [nat] there by thickness."""

    tilt: Float[Array, " 2"]
    log_ratio: Float[Array, " T"]


def climb_by_counts(
    places: Places,
    thickness: Float[Array, " T"],
    semi_angle: float,
    config: CountsConfig,
) -> Climbed:
    """The tilt at which the counts are likeliest, in steps on lattices as in `climb`, the later
    ones of the likeliest thicknesses only; thickness in Å, semi-angle in mrad.
    """
    lattice = jnp.asarray(LATTICE, places.excess.dtype)
    widths = jnp.radians(jnp.asarray(config.steps, lattice.dtype))

    def step(tilt, width, likely):
        values = log_ratios(places, tilt + width * lattice, likely, semi_angle, config)
        worth = over_thickness(values)
        return tilt + width * summit(worth), values[jnp.argmax(worth)]

    tilt, best = step(jnp.zeros(2, lattice.dtype), widths[0], thickness)
    likely = thickness[jax.lax.top_k(best, min(config.n_likely, len(thickness)))[1]]
    # a loop, for each step that is written out takes seconds to compile
    follow = lambda tilt, width: (step(tilt, width, likely)[0], None)  # noqa: E731
    tilt, _ = jax.lax.scan(follow, tilt, widths[1:])
    return Climbed(tilt, log_ratios(places, tilt[None], thickness, semi_angle, config)[0])


def explained_light(
    places: Places,
    at: Climbed,
    thickness: Float[Array, " T"],
    semi_angle: float,
    observed: Observed,
    incident: Float[ArrayLike, ""],
) -> Float[Array, ""]:
    """Share of the light, 0 … 1, that a candidate explains at its likeliest thickness.

    The light is that of the listed disks and what lies at the predicted places; a place explains
    what is expected there, and as much again, for intensities are not better known.
    """
    likeliest = thickness[jnp.argmax(at.log_ratio)]
    expected = _expected(places, at.tilt, likeliest[None], semi_angle)[:, 0]
    there = jnp.clip(places.excess, 0.0, 2.0 * expected)
    explained = (there * places.weight).sum()
    listed = jnp.where(observed.mask, jnp.exp(observed.log_share), 0.0).sum() * incident
    return explained / jnp.maximum(jnp.maximum(listed, explained), 1.0)


class Account(NamedTuple):
    """What a candidate's places say, one by one.

    expected: electrons by two-beam theory; error: of the excess, by counting, background and
    read-out [electrons]; deviation: excess less expected in units of its error, theory's included;
    log_ratio: what the place adds to the candidate's evidence [nat].
    """

    expected: Float[Array, " M"]
    error: Float[Array, " M"]
    deviation: Float[Array, " M"]
    log_ratio: Float[Array, " M"]


def account(
    places: Places,
    thickness: Float[Array, ""],
    semi_angle: float,
    incident: Float[ArrayLike, ""],
    config: CountsConfig,
) -> Account:
    """Reflection by reflection what `log_ratios` sums, untilted and at one thickness [Å]; the
    probe's `semi_angle` in mrad, `incident` in electrons.
    """
    still = jnp.zeros(2, places.excess.dtype)
    expected = _expected(places, still, thickness[None], semi_angle)
    ratio, precision = _ratios(places, expected, config)
    of_theory = (config.floor * incident) ** 2
    return Account(
        expected[:, 0],
        jnp.sqrt(jnp.maximum(places.variance - of_theory, 0.0)),
        (places.excess - expected[:, 0]) * precision[:, 0],
        jnp.log(ratio[:, 0]),
    )
