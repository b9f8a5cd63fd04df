# SPDX-License-Identifier: GPL-3.0-or-later
"""Propagation through a foil: the exponential of its matrix, absorbing or not, and in steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import near_zone_axis
from helpers import published_crystal as crystal
from scipy.linalg import expm

from jaxstem.diffraction.bloch import (
    absorption_matrix,
    choose_beams,
    prepare,
    structure_matrix,
)
from jaxstem.diffraction.geometry import excitation_error
from jaxstem.diffraction.illumination import ring_tilts, tilted
from jaxstem.diffraction.propagation import (
    propagate,
    propagate_absorbing,
    propagate_cone,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

THICKNESS = np.array([40.0, 120.0, 280.0])


@pytest.mark.parametrize(
    "name, tolerance",
    [
        ("ZnS", 0.06),
        pytest.param("Cu", 0.06, marks=pytest.mark.slow),
        pytest.param("Au", 0.1, marks=pytest.mark.slow),
    ],
)
def test_absorption_is_the_exponential_of_the_complex_matrix(name, tolerance):
    orientation = near_zone_axis([1, 1, 0], 0.7)

    @jax.jit
    def solve(tables):
        s = excitation_error(tables.g @ orientation, tables.wavelength)
        index, s = choose_beams(s[None], tables, 60)
        matrix = structure_matrix(index, s[0], tables, 60)
        absorption = absorption_matrix(index, tables)
        psi = propagate_absorbing(matrix, absorption, jnp.asarray(THICKNESS))
        still = jnp.zeros((1, 60))
        in_steps = propagate_cone(matrix, still, jnp.asarray(THICKNESS), 2, absorption)[:, 0]
        return matrix, absorption, psi, in_steps

    with jax.enable_x64(True):
        found = solve(prepare(crystal(name), 300.0, 1.5, 0.006, np.float64, 1.0))
        matrix, absorption, psi, in_steps = map(np.asarray, found)
    assert matrix.dtype == (np.complex128 if name == "ZnS" else np.float64)
    np.testing.assert_allclose(absorption, np.conj(absorption.T), atol=1e-15)
    intensity = lambda m: np.abs([expm(2j * np.pi * t * m)[:, 0] for t in THICKNESS]) ** 2  # noqa: E731
    exact, without = intensity(matrix + 1j * absorption), intensity(matrix)
    change = np.abs(exact - without).max()
    assert change > 0.01
    assert np.abs(np.abs(psi) ** 2 - exact).max() < tolerance * change
    assert np.abs(np.abs(in_steps) ** 2 - exact).max() < tolerance * change


def test_the_cones_steps_converge_in_second_order():
    orientation, tilt = near_zone_axis([1, 1, 0], 0.4), ring_tilts(0.2, 3)
    thickness = np.array([80.0, 40.0])  # in any order

    @jax.jit
    def errors(tables):
        s = excitation_error(tables.g @ orientation, tables.wavelength)
        index, s = choose_beams(s[None], tables, 40)
        g, s = tables.g[index], s[0]
        detuning = excitation_error(g @ tilted(orientation, tilt.x, tilt.y), tables.wavelength) - s
        matrix = structure_matrix(index, s, tables, 40)
        exact = jax.vmap(lambda d: propagate(matrix + jnp.diag(d), thickness))(detuning)
        in_steps = (propagate_cone(matrix, detuning, jnp.asarray(thickness), n) for n in (2, 4))
        return [jnp.abs(psi - exact.swapaxes(0, 1)).max() for psi in in_steps]

    with jax.enable_x64(True):
        two, four = map(float, errors(prepare(crystal("Cu"), 300.0, 1.2, 0.006, np.float64)))
    assert four < 0.02 and two / four == pytest.approx(4, rel=0.15)
