# SPDX-License-Identifier: GPL-3.0-or-later
"""Cones and rings of beam directions: their moments, tilts, and averages over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_matrices

from jaxstem.crystal.electron import electron_wavelength
from jaxstem.diffraction.geometry import excitation_error
from jaxstem.diffraction.illumination import beam_tilts, disk_tilts, ring_tilts, tilted
from jaxstem.diffraction.kinematic import excited
from jaxstem.diffraction.two_beam import two_beam_pattern
from jaxstem.errors import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")

WAVELENGTH = float(electron_wavelength(300e3))


@pytest.mark.parametrize("rings", [1, 2, 3])
def test_disk_quadrature_has_the_moments_of_a_disk(rings):
    """Means over a disk of radius a: x² -> a²/4, x⁴ -> a⁴/8, x²y² -> a⁴/24, odd powers -> 0."""
    tilts = disk_tilts(2.0, rings)
    assert len(tilts.x) == 1 + 3 * rings * (rings + 1)
    x, y = 1e3 * tilts.x, 1e3 * tilts.y
    mean = lambda f: np.sum(tilts.weight * f)  # noqa: E731
    assert mean(1.0) == pytest.approx(1)
    assert mean(x**2) == pytest.approx(1) and mean(y**2) == pytest.approx(1)
    assert mean(x**4) == pytest.approx(2) and mean(x**2 * y**2) == pytest.approx(2 / 3)
    for odd in (x, y, x * y, x**3, x * y**2, x**5):
        assert mean(odd) == pytest.approx(0, abs=1e-9)
    assert tilts.weight.min() > 0 and np.hypot(x, y).max() < 2


def test_ring_and_disk_add_up():
    tilts = beam_tilts(1.0, 0.5, rings=1, n_ring=8)
    assert len(tilts.x) == 56 and tilts.weight.sum() == pytest.approx(1)
    radius = np.hypot(tilts.x, tilts.y)
    assert np.abs(radius - np.deg2rad(0.5)).max() < 1e-3
    np.testing.assert_allclose(np.hypot(*beam_tilts(0.0, 0.5, n_ring=8)[:2]), np.deg2rad(0.5))
    assert beam_tilts() is None
    for wrong in ((-1.0, 0.0), (0.0, -0.1), (np.nan, 0.0)):
        with pytest.raises(InputError):
            beam_tilts(*wrong)


def test_excitation_error_of_a_tilted_beam_is_the_distance_to_its_own_sphere(rng):
    """The sphere through the origin whose centre lies against the tilted beam."""
    tilt = 0.02 * rng.normal(size=2)
    g = rng.normal(size=(300, 3)) * [1.5, 1.5, 0.1]
    with jax.enable_x64(True):
        frame = np.asarray(tilted(jnp.eye(3), *tilt))
        s = np.asarray(excitation_error(jnp.asarray(g) @ frame, WAVELENGTH))
    beam = -frame[:, 2]
    angle = np.linalg.norm(tilt)
    np.testing.assert_allclose(beam[:2] / -beam[2], np.tan(angle) / angle * tilt, rtol=1e-9)
    on_sphere = beam / WAVELENGTH + g + s[:, None] * beam
    np.testing.assert_allclose(np.linalg.norm(on_sphere, axis=1), 1 / WAVELENGTH, rtol=1e-12)


@pytest.mark.parametrize("theory", ["kinematic", pytest.param("two-beam", marks=pytest.mark.slow)])
def test_average_over_tilts_is_the_mean_of_their_patterns(reflectors_of, rng, theory):
    reflectors = reflectors_of("Cu", 1.5)
    orientation = jnp.asarray(random_matrices(rng, 5))
    settings = (0.02,) if theory == "kinematic" else (200.0,)
    diffract = excited if theory == "kinematic" else two_beam_pattern
    one = lambda r, t=None: np.asarray(diffract(r, reflectors, WAVELENGTH, *settings, t))  # noqa: E731
    ring = ring_tilts(1.0, 5)
    mean = np.mean([one(tilted(orientation, x, y))[2] for x, y in zip(*ring[:2], strict=True)], 0)
    plain, average = one(orientation), one(orientation, ring)
    np.testing.assert_allclose(average[2], mean, atol=2e-4 * mean.max())
    np.testing.assert_array_equal(average[:2], plain[:2])  # positions stay
    assert np.abs(average[2] - plain[2]).max() > 0.005 * plain[2].max()
    still = one(orientation, ring_tilts(0.0, 3))
    np.testing.assert_allclose(still[2], plain[2], atol=2e-4 * plain[2].max())


def test_averages_over_the_cone_converge(reflectors_of, rng):
    reflectors = reflectors_of("Cu", 1.5)
    orientation = jnp.asarray(random_matrices(rng, 20))

    def pattern(tilts):
        found = two_beam_pattern(orientation, reflectors, WAVELENGTH, 250.0, tilts)
        return np.asarray(found[2])

    exact = pattern(disk_tilts(2.0, 7))
    errors = [np.abs(pattern(disk_tilts(2.0, rings)) - exact).max() for rings in (0, 1, 2, 3)]
    assert errors[1] < 0.3 * errors[0] and errors[2] < 0.3 * errors[1]
    assert errors[3] < 2e-3
