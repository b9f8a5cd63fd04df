# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept of a pattern's counts: the light within a disk about every place, in one byte each.

Detection sums the counts under the aperture's image about every pixel. These sums and the
background tell how much light is anywhere in the pattern, whether a disk was found there or not,
which is what verification asks. Shapes: `H` × `W` places, the detector's pixels or every second
one where disks are wide, and so on; `h` × `w` blocks of the background.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, UInt8

FAINT, BRIGHT = 4.0, 1e6
"""Counts below which sums are kept to a share of a count, and above which they are all the same."""

_STEP = math.log1p(BRIGHT / FAINT) / 255


class Light(NamedTuple):
    """The counts of a pattern about every place; leading axes are the patterns'.

    sums: electrons within a disk about each place, background included, as `encoded` gives them;
    factor: by what the background exceeds that of the scan; centre: the direct beam's place (row,
    column) in units of the places' spacing.
    """

    sums: UInt8[Array, "... H W"]
    factor: Float[Array, "... h w"]
    centre: Float[Array, "... 2"]


class Detector(NamedTuple):
    """What the `Light` of a scan's patterns shares.

    background: electrons of the mean background within a disk, at radii `radius_step` apart; seen:
    places whose aperture lies on pixels that can be used; to_places: from qx, qy [1/Å] to row and
    column in units of the places' spacing; block: side of the background's blocks in the same
    units; disk: radius of a disk [1/Å].
    """

    background: Float[Array, " n"]
    radius_step: Float[Array, ""]
    seen: Bool[Array, "H W"]
    to_places: Float[Array, "2 2"]
    block: Float[Array, ""]
    disk: Float[Array, ""]


def encoded(sums: Float[ArrayLike, "..."]) -> UInt8[Array, "..."]:
    """Electrons as one byte: to 2.5 % at most, to a tenth of an electron near zero."""
    return jnp.round(jnp.log1p(jnp.clip(sums, 0.0, BRIGHT) / FAINT) / _STEP).astype(jnp.uint8)


def decoded(code: UInt8[ArrayLike, "..."]) -> Float[Array, "..."]:
    """The electrons of `encoded`."""
    return FAINT * jnp.expm1(_STEP * jnp.asarray(code, jnp.float32))


class ScanLight(NamedTuple):
    """The counts of a scan's patterns, in scan order, and what they share."""

    light: Light
    detector: Detector

    def at(self, index: slice | np.ndarray) -> ScanLight:
        """The same for some positions."""
        return self._replace(light=Light(*(x[index] for x in self.light)))
