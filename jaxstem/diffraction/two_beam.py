# SPDX-License-Identifier: GPL-3.0-or-later
"""Two-beam intensities: one reflection and the direct beam, exchanging electrons.

    I(s, t) = (1 / ξ²) / w² · sin²(π t w),    w² = s² + 1 / ξ²

of the incident beam, with excitation error s, extinction distance ξ and thickness t: at one
thickness (`two_beam_pattern`), averaged over thickness (`expected_intensity`), or averaged over the
illumination cone (`two_beam_intensity`: 1 - cos(2 π t w) D over two in the place of sin², D what
the cone leaves of the fringes). Hirsch et al., Electron Microscopy of Thin Crystals, 1965, ch. 8.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxstem.diffraction.geometry import Reflectors
from jaxstem.diffraction.illumination import Tilts, averaged


def two_beam_intensity(
    s: Float[Array, "..."],
    inverse_extinction: Float[Array, "..."],
    q: Float[Array, "..."],
    thickness: Float[Array, "..."],
    semi_angle: Float[Array, ""] | float,
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
    s: Float[ArrayLike, "..."],
    inverse_extinction: Float[ArrayLike, "..."],
    sigma: Float[ArrayLike, "..."],
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


def expected_intensity(
    s: Float[Array, "..."], inverse_extinction: Float[Array, "..."], floor: Float[Array, ""] | float
) -> Float[Array, "..."]:
    """Two-beam intensity averaged over thickness, a share of the incident beam.

    (1/ξ)^2 / 2 / (s^2 + 1/ξ^2 + floor^2): the mean of sin^2 is one half; `floor` [1/Å] stands for
    the finite thickness (about 1/(π t)), or for a coarse search (Hirsch et al., Electron Microscopy
    of Thin Crystals, 1965, ch. 8).
    """
    return 0.5 * inverse_extinction**2 / (s**2 + inverse_extinction**2 + floor**2)


def two_beam_pattern(
    orientation: Float[ArrayLike, "... 3 3"],
    reflectors: Reflectors,
    wavelength: Float[Array, ""] | float,
    thickness: Float[ArrayLike, "..."] | float,
    tilts: Tilts | None = None,
) -> tuple[Float[Array, "... N"], Float[Array, "... N"], Float[Array, "... N"]]:
    """All reflections of each pattern: qx, qy [1/Å] and the two-beam intensity, 0 … 1.

    I = sin^2(π t s_eff) / (ξ s_eff)^2 with s_eff^2 = s^2 + 1/ξ^2, a share of the incident beam, for
    a foil `thickness` Å thick (Hirsch et al., Electron Microscopy of Thin Crystals, 1965, ch. 8).
    For thin foils it is the kinematic |F|^2 sinc^2; in thick ones strong reflections saturate, and
    how far from the Ewald sphere a reflection is seen grows with its structure factor. `tilts` are
    those of the beam.
    """

    def intensity(s):
        effective = jnp.sqrt(s**2 + reflectors.inverse_extinction**2)
        swing = jnp.sin(jnp.pi * jnp.asarray(thickness)[..., None] * effective)
        return (swing * reflectors.inverse_extinction / effective) ** 2

    return averaged(intensity, orientation, reflectors.g, wavelength, tilts)
