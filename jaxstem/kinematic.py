# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinematic electron diffraction: orientations in, Bragg disks out.

A reciprocal-lattice vector g diffracts when it lies close to the Ewald sphere. Its distance from
the sphere along the beam, the excitation error s_g, sets how much of the intensity |F_g|^2 is
excited; its two components across the beam are where the disk lies on the detector. Turning the
crystal is a matrix product, so that a whole batch of patterns is one `(..., N, 3)` array of vectors
in the laboratory frame. Shapes: `...` patterns, `N` reflections of the crystal, `K` disks kept.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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
    g_lab: Float[Array, "... 3"], wavelength: Float[Array, ""] | float
) -> Float[Array, "..."]:
    """Distance [1/Å] from the Ewald sphere along the beam, positive inside the sphere.

    `g_lab` [1/Å] has the beam along -z; `wavelength` in Å. Exact for a beam along the foil normal:
    s = g_z - (1/λ - sqrt(1/λ^2 - g_x^2 - g_y^2)), from the geometry of the sphere (Williams &
    Carter, Transmission Electron Microscopy, chapter 12), written so that float32 loses nothing.
    """
    across = g_lab[..., 0] ** 2 + g_lab[..., 1] ** 2
    cap = wavelength * across / (1.0 + jnp.sqrt(jnp.maximum(1.0 - wavelength**2 * across, 0.0)))
    return g_lab[..., 2] - cap


def excited(
    orientation: Float[Array, "... 3 3"],
    reflectors: Reflectors,
    wavelength: Float[Array, ""] | float,
    sigma: Float[Array, "..."] | float,
) -> tuple[Float[Array, "... N"], Float[Array, "... N"], Float[Array, "... N"]]:
    """All reflections of each pattern: qx, qy [1/Å] and intensity |F|^2 exp(-s^2 / 2σ^2) [Å^2].

    `sigma` [1/Å] is the width of the shape function, one number or one a pattern; a foil of
    thickness t has σ of about 0.4 / t. The Gaussian shape is that of py4DSTEM (Ophus et al.,
    Microscopy and Microanalysis 28, 390 (2022), section on structure factors).
    """
    g_lab = jnp.einsum("...ji,nj->...ni", orientation, reflectors.g)
    s = excitation_error(g_lab, wavelength)
    width = jnp.asarray(sigma)[..., None]
    return (
        g_lab[..., 0],
        g_lab[..., 1],
        reflectors.intensity * jnp.exp(-0.5 * (s / width) ** 2),
    )


def two_beam(
    orientation: Float[Array, "... 3 3"],
    reflectors: Reflectors,
    wavelength: Float[Array, ""] | float,
    thickness: Float[Array, "..."] | float,
) -> tuple[Float[Array, "... N"], Float[Array, "... N"], Float[Array, "... N"]]:
    """All reflections of each pattern: qx, qy [1/Å] and the two-beam intensity, 0 … 1.

    I = sin^2(π t s_eff) / (ξ s_eff)^2 with s_eff^2 = s^2 + 1/ξ^2, a share of the incident beam, for
    a foil `thickness` Å thick (Hirsch et al., Electron Microscopy of Thin Crystals, 1965, ch. 8).
    For thin foils it is the kinematic |F|^2 sinc^2; in thick ones strong reflections saturate, and
    how far from the Ewald sphere a reflection is seen grows with its structure factor.
    """
    g_lab = jnp.einsum("...ji,nj->...ni", orientation, reflectors.g)
    s = excitation_error(g_lab, wavelength)
    effective = jnp.sqrt(s**2 + reflectors.inverse_extinction**2)
    swing = jnp.sin(jnp.pi * jnp.asarray(thickness)[..., None] * effective)
    intensity = (swing * reflectors.inverse_extinction / effective) ** 2
    return g_lab[..., 0], g_lab[..., 1], intensity


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


def simulate(
    orientation: Float[Array, "... 3 3"],
    reflectors: Reflectors,
    wavelength: float,
    sigma: Float[Array, "..."] | float = 0.02,
    n_disks: int = 32,
    relative_threshold: float = 1e-3,
) -> Disks:
    """The strongest disks of kinematic patterns.

    `orientation` has the lab axes as columns in crystal coordinates (q_lab = R^T g); `wavelength`
    [Å]; `sigma` [1/Å]; disks weaker than `relative_threshold` of the strongest are masked.
    """
    return strongest(
        *excited(orientation, reflectors, wavelength, sigma), n_disks, relative_threshold
    )
