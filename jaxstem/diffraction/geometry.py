# SPDX-License-Identifier: GPL-3.0-or-later
"""Where disks lie and how near reflections are to the Ewald sphere.

A reciprocal-lattice vector g diffracts when it lies close to the Ewald sphere. Its distance from
the sphere along the beam, the excitation error s_g, sets how much of its intensity is excited; its
two components across the beam are where the disk lies on the detector.

Shapes: `...` patterns, `N` reflections of the crystal, `K` disks of a pattern.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float


class Disks(NamedTuple):
    """Bragg disks of a batch of patterns, padded to K; the direct beam is not among them.

    qx, qy: position [1/Å] along lab x (detector axis 0) and lab y (axis 1); intensity: any unit,
    zero where `mask` is False (padding).
    """

    qx: Float[Array, "... K"]
    qy: Float[Array, "... K"]
    intensity: Float[Array, "... K"]
    mask: Bool[Array, "... K"]


class Reflectors(NamedTuple):
    """What diffraction needs of a crystal at one beam energy.

    g: scattering vectors [1/Å, crystal Cartesian]; intensity: |F|^2 [Å^2]; inverse_extinction:
    1/ξ_g [1/Å], the reciprocal of the two-beam extinction distance.
    """

    g: Float[Array, "N 3"]
    intensity: Float[Array, " N"]
    inverse_extinction: Float[Array, " N"]


def excitation_error(
    g_lab: Float[ArrayLike, "... 3"], wavelength: Float[ArrayLike, ""] | float
) -> Float[Array, "..."]:
    """Distance [1/Å] from the Ewald sphere along the beam, positive inside the sphere.

    `g_lab` [1/Å] has the beam along -z; `wavelength` in Å. Exact for a beam along the foil normal:
    s = g_z - (1/λ - sqrt(1/λ^2 - g_x^2 - g_y^2)), from the geometry of the sphere (Williams &
    Carter, Transmission Electron Microscopy, chapter 12), written so that float32 loses nothing.
    """
    across = g_lab[..., 0] ** 2 + g_lab[..., 1] ** 2
    cap = wavelength * across / (1.0 + jnp.sqrt(jnp.maximum(1.0 - wavelength**2 * across, 0.0)))
    return g_lab[..., 2] - cap


def strongest(
    qx: Float[Array, "... N"],
    qy: Float[Array, "... N"],
    intensity: Float[Array, "... N"],
    n_disks: int,
    relative_threshold: Float[Array, "..."] | float = 0.0,
) -> Disks:
    """The `n_disks` strongest disks, strongest first.

    Disks not above `relative_threshold` times the strongest, and those of no intensity, are masked
    out. Positions in 1/Å; padding has position and intensity zero.
    """
    n_disks = min(n_disks, intensity.shape[-1])
    value, index = jax.lax.top_k(intensity, n_disks)
    floor = jnp.asarray(relative_threshold)[..., None] * value[..., :1]
    mask = (value > floor) & (value > 0)
    take = lambda q: jnp.where(mask, jnp.take_along_axis(q, index, axis=-1), 0.0)  # noqa: E731
    return Disks(take(qx), take(qy), jnp.where(mask, value, 0.0), mask)
