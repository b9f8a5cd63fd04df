# SPDX-License-Identifier: GPL-3.0-or-later
"""A crystal as the microscope sees it: its grid, its numbers, and its extinction distances."""

import numpy as np
import pytest
from scipy import constants

from jaxstem.crystal.cell import reflections, symmetry_operations
from jaxstem.diffraction.material import (
    MOST_CELLS,
    check_materials,
    inverse_extinction,
    make_material,
)
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.errors import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_phases_that_do_not_go_together(copper, crystals):
    mg = make_material(crystals["Mg"], copper.microscope, Specimen(u_iso=0.005), 20.0)
    check_materials([copper, mg])
    with pytest.raises(InputError, match="2 phases are called Cu"):
        check_materials([copper, mg, copper])
    with pytest.raises(InputError, match="k_max"):
        near = make_material(crystals["Mg"], Microscope(300.0, k_max=1.2), mg.specimen, 20.0)
        check_materials([copper, near])
    with pytest.raises(InputError, match="one crystal at least"):
        check_materials([])


def test_material_is_refused_below_the_first_reflection(crystals):
    with pytest.raises(InputError, match="k_max"):
        make_material(crystals["Cu"], Microscope(300.0, k_max=0.3), Specimen(u_iso=0.0), 12.0)
    with pytest.raises(InputError):
        make_material(crystals["Cu"], Microscope(-5.0, k_max=1.5), Specimen(u_iso=0.0), 12.0)


def test_grid_of_low_symmetry_is_coarsened(crystals):
    coarse = make_material(crystals["ZrO2"], Microscope(300.0, k_max=1.0), Specimen(u_iso=0.0), 3.0)
    assert 0.8 * MOST_CELLS < len(coarse.grid) < 1.2 * MOST_CELLS
    assert coarse.spacing > np.deg2rad(8)


def test_material_of_copper(copper, crystals):
    assert len(copper.operations) == len(symmetry_operations(crystals["Cu"])) == 24
    assert np.rad2deg(copper.spacing) == pytest.approx(12.0, rel=0.05)
    # {111} lies at sqrt(3) / a
    assert copper.k_min == pytest.approx(0.6 * np.sqrt(3) / 3.615, rel=1e-3)
    assert copper.wavelength == pytest.approx(0.0196875, rel=1e-4)
    assert float(copper.space().label_width[0]) == pytest.approx(0.55 * copper.spacing, rel=1e-5)


def test_extinction_distance_of_copper(crystals):
    """ξ = h v / (2 e V_g), with V_g the Fourier coefficient of the potential in volt.

    About 25 to 29 nm for (111) at 100 kV in the textbooks, by the scattering factors they took.
    """
    found = reflections(crystals["Cu"], 0.6)
    volume = 3.615**3 * constants.angstrom**2  # F / V in Å^-2, as m^-2
    potential = constants.h**2 / (2 * np.pi * constants.m_e * constants.e)
    potential = potential * np.abs(found.structure_factor) / volume
    for kv in (100.0, 300.0):
        rest = constants.m_e * constants.c**2 / (1e3 * constants.e)
        velocity = constants.c * np.sqrt(1 - (rest / (rest + kv)) ** 2)
        expected = constants.h * velocity / (2 * constants.e * potential) / constants.angstrom
        distance = 1 / inverse_extinction(crystals["Cu"], found.structure_factor, kv)
        np.testing.assert_allclose(distance, expected, rtol=1e-3)
        if kv == 100.0:
            assert np.all((distance[:8] > 240) & (distance[:8] < 300))
