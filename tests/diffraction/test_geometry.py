# SPDX-License-Identifier: GPL-3.0-or-later
"""Excitation errors on the Ewald sphere, digits and all, and the choice of the strongest disks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.crystal.electron import electron_wavelength
from jaxstem.diffraction.geometry import excitation_error, strongest

pytestmark = pytest.mark.usefixtures("quick_compile")

WAVELENGTH = float(electron_wavelength(300e3))


def exact_excitation_error(g, wavelength):
    across = g[..., 0] ** 2 + g[..., 1] ** 2
    return g[..., 2] - (1 / wavelength - np.sqrt(1 / wavelength**2 - across))


def test_excitation_error_in_float32_keeps_its_digits(rng):
    g = (rng.normal(size=(2000, 3)) * [1.5, 1.5, 0.1]).astype(np.float32)
    for wavelength in (WAVELENGTH, electron_wavelength(60e3)):
        exact = exact_excitation_error(g.astype(np.float64), wavelength)
        ours = np.asarray(excitation_error(jnp.asarray(g), wavelength))
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, exact, rtol=0, atol=3e-7)


def test_excitation_error_leads_to_the_ewald_sphere(rng):
    g = rng.normal(size=(500, 3))
    with jax.enable_x64(True):
        s = np.asarray(excitation_error(jnp.asarray(g), WAVELENGTH))
    beam = np.array([0, 0, -1 / WAVELENGTH])
    scattered = beam + g - s[:, None] * [0, 0, 1]
    np.testing.assert_allclose(np.linalg.norm(scattered, axis=1), 1 / WAVELENGTH, rtol=1e-12)
    inside = np.linalg.norm(beam + g, axis=1) < 1 / WAVELENGTH
    np.testing.assert_array_equal(s > 0, inside)


def test_strongest_sorts_masks_and_pads():
    intensity = jnp.array([[0.1, 5.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 3.0, 0.0]])
    qx = jnp.tile(jnp.arange(5.0), (2, 1))
    disks = strongest(qx, -qx, intensity, 4, relative_threshold=0.1)
    np.testing.assert_array_equal(disks.intensity, [[5, 2, 1, 0], [3, 0, 0, 0]])
    np.testing.assert_array_equal(disks.qx, [[1, 4, 3, 0], [3, 0, 0, 0]])
    np.testing.assert_array_equal(disks.qy, [[-1, -4, -3, 0], [-3, 0, 0, 0]])
    np.testing.assert_array_equal(disks.mask, [[1, 1, 1, 0], [1, 0, 0, 0]])
    assert strongest(qx, -qx, intensity, 9).qx.shape == (2, 5)
