# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinematic electron diffraction: orientations in, Bragg disks out.

Turning the crystal is a matrix product, so that a whole batch of patterns is one `(..., N, 3)`
array of vectors in the laboratory frame; how much of the intensity |F_g|^2 is excited falls off
with the excitation error (`geometry.py`) as a Gaussian.

Shapes: `...` patterns, `N` reflections of the crystal, `K` disks kept, `Q` tilts of the beam.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstem.diffraction.geometry import Disks, Reflectors, strongest
from jaxstem.diffraction.illumination import Tilts, averaged


def excited(
    orientation: Float[Array, "... 3 3"],
    reflectors: Reflectors,
    wavelength: Float[Array, ""] | float,
    sigma: Float[Array, "..."] | float,
    tilts: Tilts | None = None,
) -> tuple[Float[Array, "... N"], Float[Array, "... N"], Float[Array, "... N"]]:
    """All reflections of each pattern: qx, qy [1/Å] and intensity |F|^2 exp(-s^2 / 2σ^2) [Å^2].

    `sigma` [1/Å] is the width of the shape function, one number or one a pattern; a foil of
    thickness t has σ of about 0.4 / t; `tilts` are those of the beam. The Gaussian shape is that of
    py4DSTEM (Ophus et al., Microscopy and Microanalysis 28, 390 (2022), section on structure
    factors).
    """
    width = jnp.asarray(sigma)[..., None]
    shape = lambda s: reflectors.intensity * jnp.exp(-0.5 * (s / width) ** 2)  # noqa: E731
    return averaged(shape, orientation, reflectors.g, wavelength, tilts)


def simulate(
    orientation: Float[Array, "... 3 3"],
    reflectors: Reflectors,
    wavelength: float,
    sigma: Float[Array, "..."] | float = 0.02,
    n_disks: int = 32,
    relative_threshold: float = 1e-3,
    tilts: Tilts | None = None,
) -> Disks:
    """The strongest disks of kinematic patterns.

    `orientation` has the lab axes as columns in crystal coordinates (q_lab = R^T g); `wavelength`
    [Å]; `sigma` [1/Å]; disks weaker than `relative_threshold` of the strongest are masked; `tilts`
    are those of the beam.
    """
    return strongest(
        *excited(orientation, reflectors, wavelength, sigma, tilts), n_disks, relative_threshold
    )
