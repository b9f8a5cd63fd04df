# SPDX-License-Identifier: GPL-3.0-or-later
"""The climb to a summit of the likelihood: exact on a parabola, and back to the truth."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    intensities_by_hypothesis,
    lengthened,
    likely_thickness,
    random_matrices,
    reordered,
    turn_deg,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from jaxstem.crystal.electron import electron_wavelength
from jaxstem.verification.climb import LATTICE, begin, polish, summit, value
from jaxstem.verification.config import LikelihoodConfig
from jaxstem.verification.likelihood import (
    Expected,
    log_likelihood,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = LikelihoodConfig()
LOT = 40
"""Patterns polished at once, one number for all tests."""
K_MAX = 2.0
WAVELENGTH = float(electron_wavelength(300e3))
summit_of = jax.jit(summit)


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, n_thicknesses=3, semi_angle=0.0),
        pytest.param(replace(CONFIG, shapes=()), marks=pytest.mark.slow),
        pytest.param(CONFIG, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_values_of_a_climb_are_those_of_its_hypotheses(cu, observe, config, rng):
    """Of each tilt by each thickness, and then by each shape, one by one."""
    g, strength, _ = cu
    thickness = config.thicknesses()
    np.testing.assert_allclose(thickness[jnp.array([0, -1])], config.thickness, rtol=1e-5)
    np.testing.assert_allclose(thickness[1:] / thickness[:-1], thickness[1] / 20, rtol=1e-4)

    @jax.jit
    def at_once(orientation, observed, tilt):
        ascent = begin(orientation, observed, g, strength, WAVELENGTH, K_MAX, config)
        return ascent, value(ascent, tilt, thickness, config)

    @jax.jit
    @jax.vmap
    def one_by_one(intensity):
        everything = Expected(intensity[None], ascent.log_limit, ascent.inside)
        own = jax.tree.map(lambda x: x[..., ascent.pairing.reflection], everything)
        own = own._replace(intensity=own.intensity.T)
        given = (ascent.pairing, ascent.log_share, own, everything, ascent.incident_sigma)
        return log_likelihood(*given, config)[0]

    orientation = random_matrices(rng, 1)[0]
    tilt = jnp.asarray(rng.normal(scale=0.01, size=(2, 2)), jnp.float32)
    ascent, found = at_once(orientation, observe(orientation, likely_thickness(rng)), tilt)
    assert found.shape == (2, config.n_thicknesses + len(config.shapes))
    for (x, y), values in zip(np.asarray(tilt), found, strict=True):
        reflection = ascent.s + y * ascent.x - x * ascent.y, ascent.inverse_extinction, ascent.q
        intensities = jnp.stack(intensities_by_hypothesis(*reflection, thickness, config))
        np.testing.assert_allclose(values, one_by_one(intensities), rtol=1e-3, atol=2e-2)


@given(
    x=st.floats(-0.49, 0.49),
    y=st.floats(-0.49, 0.49),
    bend=st.tuples(st.floats(0.1, 50), st.floats(0.1, 50)),
    height=st.floats(-30, 30),
)
@settings(max_examples=60, deadline=None)
def test_summit_of_a_parabola_is_exact(x, y, bend, height):
    lattice = np.array(LATTICE)
    values = height - bend[0] * (lattice[:, 0] - x) ** 2 - bend[1] * (lattice[:, 1] - y) ** 2
    found = summit_of(np.float32(values))
    tolerance = 1e-5 * (1 + abs(height) + 4 * max(bend)) / min(bend)
    np.testing.assert_allclose(found, [x, y], atol=tolerance)


@pytest.mark.parametrize("best", [0, 1, 2, 3, 5, 6, 7, 8])
def test_summit_on_the_edge_is_the_best_value(best, rng):
    values = np.float32(rng.normal(size=9))
    values[best] = 9.0
    np.testing.assert_array_equal(summit_of(values), LATTICE[best])


def test_summit_stays_within_half_a_step_of_the_middle(rng):
    for _ in range(10):
        values = np.float32(rng.normal(size=9))
        values[4] = values.max() + 0.01
        assert np.abs(summit_of(values)).max() <= 0.5


@pytest.fixture(scope="module")
def climb(cu):
    """`polish` of a batch, with more reflections of no strength far away."""
    g, strength, _ = cu
    g, strength = jnp.pad(g, ((0, 30), (0, 0)), constant_values=1e3), jnp.pad(strength, (0, 30))
    at_once = jax.jit(jax.vmap(lambda r, o: polish(r, o, g, strength, WAVELENGTH, K_MAX, CONFIG)))

    def in_lots(*batch):
        cut = lambda first: jax.tree.map(lambda x: x[first : first + LOT], batch)  # noqa: E731
        found = [at_once(*cut(first)) for first in range(0, len(batch[0]), LOT)]
        return jax.tree.map(lambda *x: np.concatenate(x), *found)

    return in_lots


def batch_of(observe, truth, thickness):
    patterns = [observe(r, t) for r, t in zip(truth, thickness, strict=True)]
    return jax.tree.map(lambda *x: np.stack(x), *patterns)


def away(truth, rng):
    """Half a degree of tilt in any direction, and half a degree in-plane."""
    n = len(truth)
    direction, in_plane = rng.uniform(0, 2 * np.pi, n), rng.choice([-0.5, 0.5], n)
    tilt = 0.5 * np.stack([np.cos(direction), np.sin(direction), np.zeros(n)], axis=-1)
    turns = zip(truth, tilt, in_plane, strict=True)
    return np.stack([r @ turn_deg(t) @ turn_deg([0, 0, z]) for r, t, z in turns])


def errors_deg(found, truth):
    """In-plane and tilt error [degrees]."""
    between = np.swapaxes(truth, 1, 2) @ np.asarray(found, np.float64)
    vector = np.rad2deg(Rotation.from_matrix(between).as_rotvec())
    return np.abs(vector[:, 2]), np.hypot(vector[:, 0], vector[:, 1])


def test_polish_returns_to_the_truth(observe, climb, rng):
    """Within 0.1° from half a degree off, for a thickness of the grid. (One in ten or so is caught
    by a lesser summit on the way.)
    """
    truth = random_matrices(rng, 4 * LOT)
    observed = batch_of(observe, truth, [likely_thickness(rng) for _ in truth])
    found = climb(away(truth, rng), observed)
    assert found.orientation.dtype == found.log_likelihood.dtype == jnp.float32
    in_plane, tilt = errors_deg(found.orientation, truth)
    assert np.percentile(in_plane, 90) < 0.02
    assert (tilt < 0.1).mean() > 0.7 and np.median(tilt) < 0.06
    np.testing.assert_allclose(
        found.orientation @ np.swapaxes(found.orientation, 1, 2),
        np.broadcast_to(np.eye(3), (4 * LOT, 3, 3)),
        atol=1e-5,
    )


def test_polish_at_any_thickness(observe, climb, rng):
    """Between the thicknesses of the grid the tilt is less sharp and the angle is not."""
    truth = random_matrices(rng, LOT)
    observed = batch_of(observe, truth, np.exp(rng.uniform(np.log(30), np.log(350), LOT)))
    in_plane, tilt = errors_deg(climb(away(truth, rng), observed).orientation, truth)
    print(np.sort(in_plane), np.sort(tilt))
    assert np.percentile(in_plane, 90) < 0.03 and np.median(tilt) < 0.28


@pytest.mark.parametrize("padding", [0, pytest.param(6, marks=pytest.mark.slow)])
def test_polish_heeds_neither_order_nor_padding_of_the_disks(observe, climb, padding, rng):
    truth = np.repeat(random_matrices(rng, 4), LOT // 4, axis=0)
    patterns = [observe(r, 110.0) for r in truth]
    stack = lambda *x: np.stack(x)  # noqa: E731
    start = away(truth, rng)
    found = climb(start, jax.tree.map(stack, *patterns))
    order = rng.permutation(len(patterns[0].qx) + padding)
    others = [reordered(lengthened(o, padding), order) for o in patterns]
    again = climb(start, jax.tree.map(stack, *others))
    np.testing.assert_allclose(again.orientation, found.orientation, atol=2e-4)
    np.testing.assert_allclose(again.log_likelihood, found.log_likelihood, atol=0.05)


def test_polish_is_finite_without_disks(observe, climb, rng):
    """Neither a pattern of padding alone nor orientations far from the truth spoil the numbers."""
    truth = random_matrices(rng, LOT)
    observed = batch_of(observe, truth, [80.0] * LOT)
    empty = observed._replace(mask=jnp.zeros_like(observed.mask))
    for start, patterns in ((truth, empty), (random_matrices(rng, LOT), observed)):
        found = climb(jnp.asarray(start), patterns)
        assert np.isfinite(found.orientation).all() and np.isfinite(found.log_likelihood).all()
