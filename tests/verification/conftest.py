# SPDX-License-Identifier: GPL-3.0-or-later
"""Copper for the likelihood and its climb, and phases for the search and its candidates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import without_optimisation

from jaxstem.crystal.cell import reflections, symmetry_operations
from jaxstem.crystal.electron import electron_wavelength
from jaxstem.diffraction.geometry import excitation_error, strongest
from jaxstem.diffraction.material import inverse_extinction, make_material
from jaxstem.diffraction.two_beam import two_beam_intensity
from jaxstem.orientation.rotations import quaternion_to_matrix
from jaxstem.verification.candidates import candidate_tables
from jaxstem.verification.config import LikelihoodConfig
from jaxstem.verification.likelihood import Observed

K_MAX = 2.0
LOG_LIMIT = np.log(1e-4)
N_DISKS = 72
"""Places of a pattern: more than it has disks."""


@pytest.fixture(scope="session")
def cu(crystals):
    """Scattering vectors and 1/ξ [1/Å] of copper up to 2 1/Å at 300 kV, and its symmetry."""
    found = reflections(crystals["Cu"], K_MAX, 0.0064)
    strength = inverse_extinction(crystals["Cu"], found.structure_factor, 300.0)
    symmetry = symmetry_operations(crystals["Cu"]).astype(np.float32)
    return jnp.asarray(found.g, jnp.float32), jnp.asarray(strength, jnp.float32), symmetry


@pytest.fixture(scope="session")
def observe(cu):
    """Patterns by the likelihood's own forward model: (orientation, thickness) to `Observed`, whose
    detection limit is 1e-4 everywhere.
    """
    g, strength, _ = cu
    wavelength = float(electron_wavelength(300e3))

    @jax.jit
    def pattern(orientation, thickness):
        g_lab = g @ orientation
        q = jnp.hypot(g_lab[:, 0], g_lab[:, 1])
        s = excitation_error(g_lab, wavelength)
        intensity = two_beam_intensity(s, strength, q, thickness, LikelihoodConfig().semi_angle)
        is_found = (q <= K_MAX) & (jnp.log(intensity + 1e-9) > LOG_LIMIT)
        intensity = jnp.where(is_found, intensity, 0.0)
        disks = strongest(g_lab[:, 0], g_lab[:, 1], intensity, N_DISKS)
        log_share = jnp.log(jnp.maximum(disks.intensity, 1e-9))
        limit = jnp.full(41, LOG_LIMIT, jnp.float32)
        return Observed(disks.qx, disks.qy, log_share, disks.mask, limit, jnp.float32(0.1))

    def checked(orientation, thickness):
        observed = pattern(jnp.asarray(orientation), jnp.float32(thickness))
        assert 5 < int(observed.mask.sum()) < N_DISKS
        return observed

    return checked


@pytest.fixture(scope="session")
def cells(copper):
    """Orientations of the copper grid's cells."""
    return np.asarray(quaternion_to_matrix(jnp.asarray(copper.grid)))


@pytest.fixture(scope="session")
def two(copper, tables, crystals):
    """Copper and magnesium with the tables of each."""
    with without_optimisation():
        mg = make_material(crystals["Mg"], copper.microscope, copper.specimen, 16.0)
        arguments = (mg.grid, mg.operations, mg.reflectors(), mg.wavelength, mg.crystal.lattice)
        return (copper, mg), (tables, candidate_tables(*arguments))
