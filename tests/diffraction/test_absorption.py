# SPDX-License-Identifier: GPL-3.0-or-later
"""Absorptive form factors against another program's, and against what is scattered diffusely."""

import numpy as np
import pytest
from helpers import FIXTURES

from jaxstem.crystal.cell import debye_waller
from jaxstem.crystal.scattering import lobato_factor
from jaxstem.diffraction.absorption import absorptive_factor

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_absorptive_factors_are_weickenmeier_and_kohls():
    """py4DSTEM gives half of them; other elastic factors go into both calculations."""
    fixture = np.load(FIXTURES / "bloch_absorption.npz")
    g, energy = fixture["g"], float(fixture["energy_ev"])
    for number, sigma, factor in zip(
        fixture["number"], fixture["thermal_sigma"], fixture["factor"], strict=True
    ):
        ours = absorptive_factor(int(number), g, sigma**2, energy)
        theirs = 2 * factor.imag
        np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.005 * theirs[0])


def test_what_is_absorbed_forwards_is_what_is_scattered_diffusely():
    """2 λ m/m0 f'(0) is the cross section: the integral of (m/m0)² f² (1 - D²) over all angles."""
    u_iso, wavelength, mass = 0.01, 0.0196875, 1.58709
    q = np.linspace(0, 80, 400_001)
    integrand = lobato_factor(29, q) ** 2 * (1 - debye_waller(q, u_iso) ** 2) * 2 * np.pi * q
    cross_section = mass**2 * wavelength**2 * np.sum(integrand) * q[1]
    ours = absorptive_factor(29, np.zeros(1), u_iso, 300e3)[0]
    assert 2 * wavelength * mass * ours == pytest.approx(cross_section, rel=2e-3)
