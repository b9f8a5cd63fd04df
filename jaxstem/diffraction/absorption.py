# SPDX-License-Identifier: GPL-3.0-or-later
"""Absorptive form factors of the Einstein model (the formula and its sources: `bloch.py`)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex, Float, Int

from jaxstem.crystal.cell import Crystal, debye_waller, reciprocal_lattice
from jaxstem.crystal.electron import ELECTRON_REST_ENERGY, electron_wavelength
from jaxstem.crystal.scattering import lobato_factor


def absorptive_factor(
    number: int, g: Float[np.ndarray, " n"], u_iso: float, energy_ev: float
) -> Float[np.ndarray, " n"]:
    """f'(g) of `bloch.py` [Å] at |g| = g [1/Å], of an atom moving by `u_iso` [Å²].

    It stands where f_e times the Debye-Waller factor stands in U. The integral is a sum in polar
    coordinates about g / 2, radii spaced geometrically, right to 0.1 % or so.
    """
    mass = 1 + energy_ev / ELECTRON_REST_ENERGY
    radius = np.geomspace(1e-3, 60.0, 240)
    angle = (np.arange(24) + 0.5) * np.pi / 24  # the other half plane is the mirror image
    area = radius**2 * np.log(radius[1] / radius[0]) * 2 * np.pi / len(angle)
    half = 0.5 * np.asarray(g, dtype=np.float64)[:, None, None]
    across = half**2 + radius[:, None] ** 2
    along = 2 * half * radius[:, None] * np.cos(angle)
    one, other = np.sqrt(np.maximum([across + along, across - along], 0.0))
    lost = debye_waller(2 * half, u_iso) - debye_waller(one, u_iso) * debye_waller(other, u_iso)
    product = lobato_factor(number, one) * lobato_factor(number, other) * lost
    integral = np.einsum("gra,r->g", product, area)
    return 0.5 * mass * electron_wavelength(energy_ev) * integral


def absorptive_factors(
    crystal: Crystal, hkl: Int[np.ndarray, "n 3"], u_iso: float, energy_ev: float
) -> Complex[np.ndarray, " n"]:
    """Structure factors [Å] of `absorptive_factor`, which is interpolated over |g|."""
    length = np.linalg.norm(hkl @ reciprocal_lattice(crystal.lattice), axis=-1)
    knots = np.linspace(0.0, length.max(), 200)
    factor = {
        z: np.interp(length, knots, absorptive_factor(int(z), knots, u_iso, energy_ev))
        for z in np.unique(crystal.numbers)
    }
    total = np.zeros(len(hkl), dtype=np.complex128)
    for z, occupancy, position in zip(
        crystal.numbers, crystal.occupancies, crystal.positions, strict=True
    ):
        total += occupancy * factor[z] * np.exp(2j * np.pi * (hkl @ position))
    return total
