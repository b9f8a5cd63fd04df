# SPDX-License-Identifier: GPL-3.0-or-later
"""The search on a lattice around a candidate: its score by hand, and the truth that it finds."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    prepared_pattern,
    random_matrices,
    thick_foil_disks,
    turn_deg,
)
from scipy.spatial.transform import Rotation

from jaxstem.diffraction.geometry import Disks, strongest
from jaxstem.diffraction.two_beam import two_beam_pattern
from jaxstem.verification.config import Limit, ScoreConfig
from jaxstem.verification.ranking import Forward
from jaxstem.verification.search import cosine_score, pattern_of, search_lattice

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = ScoreConfig(n_modes=4)


def every_reflection(copper):
    reflectors = copper.reflectors()
    return Forward(reflectors.g, reflectors.inverse_extinction)


def make_climb(copper, config):
    """All levels of a search with every reflection, batched: (start, disks) to answer and score."""
    forward = every_reflection(copper)

    @jax.jit
    @jax.vmap
    def climb(orientation, disks):
        pattern = prepared_pattern(disks, config.measured_power)
        for level in config.levels:
            level = replace(level, n_visible=len(forward.g))
            orientation, score = search_lattice(
                orientation, pattern, forward, copper.wavelength, copper.k_max, level, config
            )
        return orientation, score

    return climb


@pytest.fixture(scope="module")
def climb(copper):
    return make_climb(copper, CONFIG)


def errors_deg(found, truth, symmetry):
    """In-plane and tilt error [degrees] of each orientation, of its nearest equivalent."""
    operation = np.argmax(np.einsum("oij,njk,nik->no", symmetry, found, truth), axis=1)
    between = np.swapaxes(truth, 1, 2) @ symmetry[operation] @ np.asarray(found)
    vector = np.rad2deg(Rotation.from_matrix(between).as_rotvec())
    return np.abs(vector[:, 2]), np.hypot(vector[:, 0], vector[:, 1])


def perturbed(truth, rng):
    """3° of tilt in any direction after 2.9° in-plane."""
    n = len(truth)
    direction, in_plane = rng.uniform(0, 2 * np.pi, n), rng.choice([-2.9, 2.9], n)
    tilt = 3 * np.stack([np.cos(direction), np.sin(direction), np.zeros(n)], axis=-1)
    turns = zip(truth, tilt, in_plane, strict=True)
    return np.stack([r @ turn_deg(t) @ turn_deg([0, 0, z]) for r, t, z in turns])


def test_search_recovers_the_orientation(copper, rng):
    """With equal powers on both sides and all disks measured, the score's summit is the truth."""
    lattice = CONFIG.levels[-1]
    config = replace(
        CONFIG,
        measured_power=0.5,
        predicted_power=0.5,
        levels=tuple(
            replace(lattice, kernel=kernel, angle=5.0, n_turns=2, tilt=reach, n_tilts=n)
            for reach, n, kernel in ((3.2, 17, 0.06), (0.4, 5, 0.03), (0.1, 5, 0.03))
        ),
    )
    truth = random_matrices(rng, 120)
    disks = jax.jit(jax.vmap(lambda r: thick_foil_disks(r, copper, 60, 1e-5)))(truth)
    found, score = make_climb(copper, config)(perturbed(truth, rng), disks)
    in_plane, tilt = errors_deg(found, truth, copper.operations)
    print(np.sort(in_plane), np.sort(tilt))
    assert np.median(np.hypot(in_plane, tilt)) < 0.15
    assert np.percentile(in_plane, 90) < 0.1 and np.percentile(tilt, 80) < 0.6
    assert np.median(score) > 0.99


def test_default_search_finds_the_angle_sharply_and_the_tilt_roughly(copper, climb, rng):
    """Sixteen disks of one thickness; unequal powers draw the tilt by a degree or so."""
    truth = random_matrices(rng, 40)
    thickness = np.float32(rng.uniform(60, 150, 40))

    @jax.jit
    def disks(orientation, thickness):
        material = copper.reflectors(), copper.wavelength
        return strongest(*two_beam_pattern(orientation, *material, thickness), 16, 1e-2)

    found, _ = climb(perturbed(truth, rng), disks(truth, thickness))
    in_plane, tilt = errors_deg(found, truth, copper.operations)
    print(np.sort(in_plane), np.sort(tilt))
    assert np.median(in_plane) < 0.1
    assert np.median(tilt) < 1.6


def test_cosine_is_one_for_the_pattern_itself(copper, rng):
    """Measured intensities to their power proportional to the predicted ones to theirs."""
    orientation = random_matrices(rng, 1)[0]
    disks = thick_foil_disks(jnp.asarray(orientation), copper, 14)
    config = replace(CONFIG, measured_power=0.25, predicted_power=0.5)
    same = disks._replace(intensity=7.0 * disks.intensity ** (0.5 / 0.25))
    pattern = prepared_pattern(same, config.measured_power)
    predicted = jnp.where(disks.mask, jnp.maximum(disks.intensity, 1e-12) ** 0.5, 0.0)[None]
    cosine = jax.jit(cosine_score)
    score = cosine(pattern, disks.qx, disks.qy, predicted, 1e-3)
    assert float(score[0]) == pytest.approx(1.0, abs=1e-4)
    moved = cosine(pattern, disks.qx + 0.03, disks.qy, predicted, 0.03)
    assert float(moved[0]) < 0.9


def test_scores_lie_between_zero_and_one(copper, climb, rng):
    n = 40
    disks = jax.jit(jax.vmap(lambda r: thick_foil_disks(r, copper)))(random_matrices(rng, n))
    _, score = climb(jnp.asarray(random_matrices(rng, n)), disks)
    assert score.min() >= 0 and score.max() <= 1


def test_cosine_counts_a_disk_for_each_overlapping_reflection():
    """Two reflections in one place share a disk: the bare cosine is √2 (`verify` reports one)."""
    one = jnp.array([0.5])
    disks = Disks(one, 0 * one, one, jnp.ones(1, bool))
    pattern = prepared_pattern(disks)
    position = jnp.array([0.5, 0.5])
    value = cosine_score(pattern, position, 0 * position, jnp.ones((1, 2)), 0.03)[0]
    assert float(value) == pytest.approx(np.sqrt(2), rel=1e-4)


def test_patterns_are_prepared_in_shares_of_the_incident_beam(rng):
    """Weights have norm one over the disks; intensities are shares, positions untouched."""
    qx, qy, intensity = (jnp.asarray(rng.uniform(0.1, 1, 6), jnp.float32) for _ in range(3))
    disks = Disks(qx, qy, intensity, jnp.arange(6) < 4)
    limit = jnp.linspace(-9, -7, 41)
    pattern = pattern_of(disks, 20.0, 0.3, False, Limit(limit, -jnp.inf, 2.0), 0.25)
    weight = np.exp(pattern.log_weight)
    np.testing.assert_allclose((weight**2).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(weight[:4] / weight[0], (intensity[:4] / intensity[0]) ** 0.25, 1e-4)
    np.testing.assert_array_equal(weight[4:], 0)
    observed = pattern.observed
    np.testing.assert_allclose(np.exp(observed.log_share[:4]), intensity[:4] / 20, rtol=1e-5)
    np.testing.assert_array_equal(observed.qx, qx)
    np.testing.assert_array_equal(observed.mask, disks.mask)
    np.testing.assert_array_equal(observed.log_limit, limit)
    assert observed.incident_sigma == 0.3


def test_a_cut_pattern_has_lost_its_weakest_disks():
    """What is weaker than the weakest that was left of a pattern is not missed."""
    one = jnp.ones(3)
    limit = jnp.log(jnp.array([1e-4, 1e-3, 0.05]))
    disks = Disks(one, one, jnp.array([0.5, 0.1, 0.01]), one > 0)

    def seen(disks, is_cut, ratio=0.0):
        limits = Limit(limit, jnp.log(ratio), 2.0)
        return pattern_of(disks, 1.0, 0.1, is_cut, limits, 0.25).observed.log_limit

    np.testing.assert_allclose(np.exp(seen(disks, True)), [0.01, 0.01, 0.05], rtol=1e-5)
    np.testing.assert_allclose(seen(disks, False), limit)
    free = disks._replace(mask=jnp.array([True, True, False]))
    np.testing.assert_allclose(np.exp(seen(free, True)), [0.1, 0.1, 0.1], rtol=1e-5)
    # nor what is too weak beside the pattern's strongest disk, where lists are cut so
    np.testing.assert_allclose(np.exp(seen(free, False, 0.1)), [0.05, 0.05, 0.05], rtol=1e-5)
