# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept of a pattern's counts: the light within a disk about every place, in one byte each.

Detection sums the counts under the aperture's image about every pixel. These sums and the
background tell how much light is anywhere in the pattern, whether a disk was found there or not,
which is what verification asks. A byte tells each sum to some of its counting noise; and as they
are smooth over a disk's radius, every second one does in a file.

Shapes: `H` × `W` places, half a disk's radius apart or nearer; `h` × `w` of them that are kept:
all, or every second one of every second row; `y` × `x` blocks of the background.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, UInt8

_NOISE, _SHARE = 1.0, 0.04
"""Steps of the byte: in standard deviations of counting noise, and as a share of what is counted,
of which the larger decides."""

_HALF_WAY = 0.5 * (_NOISE / _SHARE) ** 2
"""Electrons at which both are as large, nearly."""

_BETWEEN = (150 / 256, -25 / 256, 3 / 256)
"""Weights of the neighbours, from the next outwards, of which a value half-way between is made: the
polynomial through six (J. L. Lagrange)."""

_LEAST, _MOST = 0.7, 1.4
"""Of the next neighbours' smaller and larger value, how much there is between them: a disk's middle
is brighter by as much."""


class Light(NamedTuple):
    """The counts of a pattern about every place; leading axes are the patterns'.

    sums: electrons within a disk about the places that are kept, background included, as `encoded`
    gives them; factor: by what the background exceeds that of the scan, as `encoded_factor` gives
    it; centre: the direct beam's place (row, column) in units of the places' spacing.
    """

    sums: UInt8[Array, "... h w"]
    factor: UInt8[Array, "... y x"]
    centre: Float[Array, "... 2"]


class Detector(NamedTuple):
    """What the `Light` of a scan's patterns shares.

    background: electrons of the mean background within a disk, at radii `radius_step` apart; seen:
    places whose aperture lies on pixels that can be used; to_places: from qx, qy [1/Å] to row and
    column in units of the places' spacing; block: side of the background's blocks in the same
    units; disk: radius of a disk [1/Å]; found: share of a disk's light that is found at its place,
    on average, for places between those that are kept are interpolated.
    """

    background: Float[Array, " n"]
    radius_step: Float[Array, ""]
    seen: Bool[Array, "H W"]
    to_places: Float[Array, "2 2"]
    block: Float[Array, ""]
    disk: Float[Array, ""]
    found: Float[Array, ""]


def encoded(sums: Float[ArrayLike, "..."]) -> UInt8[Array, "..."]:
    """Electrons as one byte, whose steps are those of counting noise where counts are few and a
    share of them where they are many; what is below zero counts as none.
    """
    share = jnp.maximum(jnp.asarray(sums), 0.0) / _HALF_WAY
    code = jnp.log1p(share + jnp.sqrt(share * (share + 2.0))) / _SHARE  # the inverse of cosh - 1
    return jnp.round(jnp.minimum(code, 255.0)).astype(jnp.uint8)


def decoded(code: UInt8[ArrayLike, "..."]) -> Float[Array, "..."]:
    """The electrons of `encoded`."""
    half = jnp.sinh(0.5 * _SHARE * jnp.asarray(code, jnp.float32))
    return 2.0 * _HALF_WAY * half * half  # cosh - 1, to the last digit where it is small, too


def encoded_factor(factor: Float[ArrayLike, "..."]) -> UInt8[Array, "..."]:
    """A positive factor as one byte: to 1.5 %, from a fiftieth to fifty."""
    code = jnp.log(jnp.maximum(jnp.asarray(factor), 1e-6)) / _FACTOR_STEP
    return (128 + jnp.clip(jnp.round(code), -127, 127)).astype(jnp.uint8)


def decoded_factor(code: UInt8[ArrayLike, "..."]) -> Float[Array, "..."]:
    """The factor of `encoded_factor`."""
    return jnp.exp(_FACTOR_STEP * (jnp.asarray(code, jnp.float32) - 128.0))


_FACTOR_STEP = 0.03


def light_everywhere(code: UInt8[ArrayLike, "h w"], shape: tuple[int, int]) -> Float[Array, "H W"]:
    """The electrons about all places of the `shape` (H, W), from those that are kept."""
    return everywhere(decoded(code), shape)


def everywhere(sums: Float[Array, "h w"], shape: tuple[int, int]) -> Float[Array, "H W"]:
    """What all places of the `shape` (H, W) hold, from all of them or every second one of every
    second row.
    """
    return _filled(_filled(sums, shape[0]).T, shape[1]).T


def _filled(rows: Float[Array, "h w"], n: int) -> Float[Array, "n w"]:
    if len(rows) == n:
        return rows
    most = len(_BETWEEN)
    wide = jnp.pad(rows, ((most - 1, most), (0, 0)), mode="edge")
    at = lambda step: wide[most - 1 + step :][: len(rows)]  # noqa: E731
    between = sum(share * (at(-i) + at(i + 1)) for i, share in enumerate(_BETWEEN))
    # a polynomial rings beside bright disks
    low, high = jnp.minimum(at(0), at(1)), jnp.maximum(at(0), at(1))
    between = jnp.clip(between, _LEAST * low, _MOST * high)
    return jnp.stack([rows, between], axis=1).reshape(2 * len(rows), -1)[:n]


class Apertures(NamedTuple):
    """What the `Light` of a scan's patterns shares before a calibration says where 1/Å lie.

    apart: spacing of the places [px]; radius: of a disk [px]; background, radius_step, seen, block,
    found: as in `Detector`.
    """

    apart: float
    radius: float
    background: Float[np.ndarray, " n"]
    radius_step: float
    seen: Bool[np.ndarray, "H W"]
    block: float
    found: float


class ScanLight(NamedTuple):
    """The counts of a scan's patterns, in scan order, and what they share."""

    light: Light
    detector: Detector

    def at(self, index: slice | np.ndarray) -> ScanLight:
        """The same for some positions."""
        return self._replace(light=Light(*(x[index] for x in self.light)))
