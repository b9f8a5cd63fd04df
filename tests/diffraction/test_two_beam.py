# SPDX-License-Identifier: GPL-3.0-or-later
"""Two-beam theory: its limits, oscillations and bounds, and the mean over a cone by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_matrices
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.crystal.electron import electron_wavelength
from jaxstem.diffraction.geometry import Reflectors, excitation_error
from jaxstem.diffraction.two_beam import (
    cos_turns,
    kinematic_intensity,
    two_beam_intensity,
    two_beam_pattern,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

WAVELENGTH = float(electron_wavelength(300e3))
share = jax.jit(two_beam_intensity)
pattern = jax.jit(two_beam_pattern)


def test_thin_two_beam_foil_is_kinematic(reflectors_of, rng):
    reflectors = reflectors_of("Cu")
    orientation = random_matrices(rng, 6)
    g_lab = np.einsum("pji,nj->pni", orientation, reflectors.g)
    s = np.asarray(excitation_error(jnp.asarray(g_lab), WAVELENGTH))
    thickness = 4.0
    *_, intensity = pattern(orientation, reflectors, WAVELENGTH, thickness)
    amplitude = np.pi * thickness * np.asarray(reflectors.inverse_extinction)
    kinematic = (amplitude * np.sinc(s * thickness)) ** 2
    bright = kinematic > 1e-3 * kinematic.max()
    np.testing.assert_allclose(np.asarray(intensity)[bright], kinematic[bright], rtol=0.02)
    np.testing.assert_allclose(
        np.asarray(reflectors.inverse_extinction) ** 2 / np.asarray(reflectors.intensity),
        (reflectors.inverse_extinction[0] ** 2 / reflectors.intensity[0]).item(),
        rtol=1e-4,
    )


def one_reflector(s, extinction_distance):
    """A reflection `s` (1/Å) off the Ewald sphere when the crystal is not turned."""
    across = 0.48
    on_sphere = 1 / WAVELENGTH - np.sqrt(1 / WAVELENGTH**2 - across**2)
    return Reflectors(
        jnp.asarray([[across, 0.0, on_sphere + s]]),
        jnp.ones(1),
        jnp.asarray([1 / extinction_distance]),
    )


@jax.jit
def of_one(reflector, thickness):
    return two_beam_pattern(jnp.eye(3), reflector, WAVELENGTH, thickness)[2][0]


@settings(max_examples=30, deadline=None)
@given(
    s=st.floats(-0.02, 0.02), extinction=st.floats(100.0, 900.0), thickness=st.floats(5.0, 500.0)
)
def test_two_beam_pendelloesung(s, extinction, thickness):
    with jax.enable_x64(True):

        def intensity(s, t):
            return float(of_one(one_reflector(s, extinction), t))

        at_bragg = intensity(0.0, thickness)
        assert at_bragg == pytest.approx(np.sin(np.pi * thickness / extinction) ** 2, abs=1e-6)
        assert intensity(0.0, thickness + extinction) == pytest.approx(at_bragg, abs=1e-6)
        assert intensity(0.0, extinction / 2) == pytest.approx(1.0, abs=1e-9)
        effective = np.hypot(s, 1 / extinction)
        here = intensity(s, thickness)
        assert intensity(s, thickness + 1 / effective) == pytest.approx(here, abs=1e-6)
        assert here <= 1 / (1 + (s * extinction) ** 2) + 1e-9


def test_two_beam_intensity_saturates(reflectors_of, rng):
    reflectors = reflectors_of("Cu")
    orientation = random_matrices(rng, 50)
    thickness = np.float32(rng.uniform(1, 2000, 50))
    *_, intensity = pattern(orientation, reflectors, WAVELENGTH, thickness)
    assert intensity.min() >= 0 and intensity.max() <= 1 + 1e-6


def random_reflections(rng, n):
    """s, 1/ξ and q [1/Å] and thicknesses [Å] as they occur."""
    return (
        rng.uniform(-0.03, 0.03, n),
        10 ** rng.uniform(-3.3, -1.7, n),
        rng.uniform(0.3, 2.0, n),
        np.exp(rng.uniform(np.log(20), np.log(400), n)),
    )


def float32(arrays):
    return [np.float32(x) for x in arrays]


@pytest.mark.parametrize("semi_angle", [0.5, 1.5, 3.0])
def test_two_beam_intensity_is_the_mean_over_the_cone(semi_angle, rng):
    """To a seventh of the envelope where that varies little over the disk (w > 5 α q), and as a
    rule much better; without damping the fringes would be wrong by more than all of them.
    """
    arguments = random_reflections(rng, 2000)
    ours, bare = (np.asarray(share(*float32(arguments), angle)) for angle in (semi_angle, 0.0))
    s, strength, q, thickness = arguments
    slow = np.hypot(s, strength) > 5e-3 * semi_angle * q
    s, strength, q, thickness, ours, bare = (x[slow] for x in (*arguments, ours, bare))
    radius = np.sqrt((np.arange(100) + 0.5) / 100)
    towards_g = np.outer(radius, np.cos(2 * np.pi * (np.arange(48) + 0.5) / 48)).ravel()
    brute = np.zeros_like(s)
    for shift in 1e-3 * semi_angle * towards_g:
        width = np.hypot(s + shift * q, strength)
        brute += (strength / width * np.sin(np.pi * thickness * width)) ** 2 / len(towards_g)
    envelope = strength**2 / (s**2 + strength**2)
    deviation, undamped = np.abs(ours - brute) / envelope, np.abs(bare - brute) / envelope
    assert deviation.max() < 0.14
    assert np.percentile(deviation, 90) < 0.08 and np.median(deviation) < 0.03
    assert np.percentile(undamped, 99) > 4 * np.percentile(deviation, 99)


def test_two_beam_intensity_of_a_parallel_beam_is_the_textbooks(rng):
    s, strength, q, thickness = random_reflections(rng, 3000)
    width = np.hypot(s, strength)
    exact = (strength / width * np.sin(np.pi * thickness * width)) ** 2
    ours = share(*float32((s, strength, q, thickness)), 0.0)
    np.testing.assert_allclose(ours, exact, atol=1e-4)
    assert np.abs(ours - exact).max() < 1e-4 < exact.max() / 100


@given(
    s=st.floats(-1, 1, width=32),
    strength=st.floats(2**-20, 0.0625, width=32),
    q=st.floats(0, 5, width=32),
    thickness=st.floats(0, 4096, width=32),
    semi_angle=st.sampled_from([0.0, 1.5, 20.0]),
)
@settings(max_examples=200, deadline=None)
def test_two_beam_intensity_is_a_share(s, strength, q, thickness, semi_angle):
    """Never negative, so that it has a logarithm; nothing comes out of no crystal."""
    arguments = float32((s, strength, q, thickness))
    assert 0 <= float(share(*arguments, semi_angle)) <= 1
    assert float(share(*arguments[:3], np.float32(0), semi_angle)) == 0


def test_cos_turns(rng):
    turns = np.concatenate([rng.uniform(-60, 60, 20000), np.arange(-4, 4.01, 0.25)])
    turns = turns.astype(np.float32)
    exact = np.cos(2 * np.pi * turns.astype(np.float64))
    ours = np.asarray(jax.jit(cos_turns)(turns))
    np.testing.assert_allclose(ours, exact, atol=2e-4)
    assert ours.max() <= 1


def test_kinematic_intensity_is_that_of_a_thin_foil(rng):
    """Two-beam theory for t = 0.4 / σ in a weak reflection: equal at the Bragg angle and alike
    over the central fringe.
    """
    sigma, strength = rng.uniform(0.005, 0.03, 200), 10 ** rng.uniform(-5, -4, 200)
    kinematic = jax.jit(kinematic_intensity)
    at = lambda s: kinematic(*float32((s * sigma, strength, sigma)))  # noqa: E731
    for s, tolerance in ((0.0, 0.01), (0.5, 0.05), (1.0, 0.15)):
        width = np.hypot(s * sigma, strength)
        exact = (strength / width * np.sin(np.pi * width * 0.4 / sigma)) ** 2
        np.testing.assert_allclose(at(s), exact, rtol=tolerance)
    assert np.all(at(4.0) < 4e-4 * at(0.0))
