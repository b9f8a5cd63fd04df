# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict by Bloch waves: it finds orientation and thickness, and judges what is in question.

Patterns are made by more beams and a finer cone than they are judged by.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import prepared_pattern, random_matrices
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.diffraction.bloch import bloch_intensities, prepare
from jaxstem.diffraction.geometry import Disks, strongest
from jaxstem.diffraction.illumination import disk_tilts
from jaxstem.verification.config import DynamicalConfig, LikelihoodConfig, ScoreConfig
from jaxstem.verification.dynamical import climb_dynamically
from jaxstem.verification.ranking import Ranked
from jaxstem.verification.refinement import verify_dynamically

pytestmark = pytest.mark.usefixtures("quick_compile")

RULES = DynamicalConfig(thickness=(60.0, 140.0), n_thicknesses=33, n_beams=32, n_weak=60)
STATISTICS = LikelihoodConfig()
K_MIN, K_MAX = 0.3, 2.0
LIMIT = 1e-4
SEMI_ANGLE = STATISTICS.semi_angle
LOST = -1e4
"""Log-likelihood of candidates that are given no chance."""


def tilt(degrees, direction):
    """A turn by `degrees` about an axis across the beam."""
    axis = np.array([np.cos(direction), np.sin(direction), 0.0])
    return Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix().astype(np.float32)


def angle_deg(found, truth):
    between = np.asarray(found, np.float64) @ np.swapaxes(truth, -1, -2)
    return np.rad2deg(Rotation.from_matrix(between).magnitude())


@pytest.fixture(scope="module")
def phases(crystals):
    """Tables of copper and magnesium."""
    return [prepare(crystals[name], 300.0, 2.5, 0.0064) for name in ("Cu", "Mg")]


@pytest.fixture(scope="module")
def simulate(phases):
    """(orientation, thickness) to the disks of copper beyond the direct beam, or with it; or of
    the other phase.
    """
    cone = disk_tilts(SEMI_ANGLE, 2)

    @partial(jax.jit, static_argnames="phase")
    def disks(orientation, thickness, k_min=K_MIN, phase=0):
        layers = jnp.stack([0.5 * thickness, thickness])
        beams = bloch_intensities(orientation, layers, phases[phase], 48, 80, None, cone, 6)
        q, intensity = jnp.hypot(beams.qx, beams.qy), beams.intensity[1]
        is_found = (q >= k_min) & (q <= K_MAX) & (intensity > LIMIT)
        return strongest(beams.qx, beams.qy, jnp.where(is_found, intensity, 0.0), 40)

    return disks


def prepared(disks):
    return prepared_pattern(disks, limit=LIMIT)


@pytest.fixture(scope="module")
def to_summit(phases):
    return jax.jit(
        lambda orientation, observed: climb_dynamically(
            orientation, observed, phases[0], K_MIN, K_MAX, RULES, STATISTICS
        )
    )


@pytest.mark.slow
def test_climb_finds_orientation_and_thickness(simulate, to_summit, rng):
    """From 0.15° off, noise-free: most within 0.05° and nearly all within 5 % of the thickness."""
    angles, thicknesses = [], []
    for truth in random_matrices(rng, 24):
        thickness = rng.uniform(70, 130)
        observed = prepared(simulate(truth, thickness)).observed
        found = to_summit(truth @ tilt(0.15, rng.uniform(0, 2 * np.pi)), observed)
        assert found.orientation.dtype == found.thickness.dtype == jnp.float32
        angles.append(angle_deg(found.orientation, truth))
        thicknesses.append(float(found.thickness) / thickness)
    print(np.sort(angles), np.sort(thicknesses))
    assert np.median(angles) < 0.05
    assert (np.array(angles) < 0.12).mean() > 0.65
    assert (np.abs(np.array(thicknesses) - 1) < 0.05).mean() > 0.75


@pytest.mark.slow
def test_climb_does_not_see_the_direct_beam_nor_the_padding(simulate, to_summit, rng):
    truth = random_matrices(rng, 1)[0]
    without, with_beam = (simulate(truth, 100.0, k_min) for k_min in (K_MIN, 0.0))
    assert int(with_beam.mask.sum()) == int(without.mask.sum()) + 1
    longer = Disks(*(jnp.pad(x, (0, 7)) for x in without))
    start = truth @ tilt(0.1, 1.0)
    found = to_summit(start, prepared(without).observed)
    for disks in (with_beam, longer):
        again = to_summit(start, prepared(disks).observed)
        np.testing.assert_allclose(again.orientation, found.orientation, atol=1e-4)
        assert float(again.log_likelihood) == pytest.approx(float(found.log_likelihood), abs=0.05)
        assert again.thickness == found.thickness


@pytest.mark.slow
def test_climb_is_finite_without_disks(simulate, to_summit, rng):
    truth = random_matrices(rng, 1)[0]
    disks = simulate(truth, 100.0)
    empty = prepared(disks._replace(mask=jnp.zeros_like(disks.mask))).observed
    found = to_summit(truth, empty)
    assert np.isfinite(found.orientation).all()
    assert np.isfinite(found.log_likelihood) and found.log_likelihood < 0


@pytest.mark.slow
def test_a_parallel_beam_needs_no_cone(simulate, phases, rng):
    """Semi-angle zero: patterns of one direction are explained better than by a cone of 3 mrad."""
    gained = []
    coarse = replace(RULES, steps=(0.02,), n_thicknesses=17)

    @jax.jit
    def values(orientation, observed):
        found = [
            climb_dynamically(
                orientation,
                observed,
                phases[0],
                K_MIN,
                K_MAX,
                coarse,
                replace(STATISTICS, semi_angle=angle),
            ).log_likelihood
            for angle in (0.0, 3.0)
        ]
        return jnp.stack(found)

    for truth in random_matrices(rng, 6):
        beams = bloch_intensities(truth, jnp.array([100.0]), phases[0], 48, 80)
        q, intensity = jnp.hypot(beams.qx, beams.qy), beams.intensity[0]
        intensity = jnp.where((q > K_MIN) & (q <= K_MAX) & (intensity > LIMIT), intensity, 0.0)
        disks = strongest(beams.qx, beams.qy, intensity, 40)
        parallel, cone = values(truth, prepared(disks).observed)
        gained.append(float(parallel - cone))
    assert np.isfinite(gained).all() and np.median(gained) > 3


@pytest.fixture(scope="module")
def verdict(crystals, phases):
    """`verify_dynamically` with copper (phase 0) and magnesium (phase 1), four candidates."""
    symmetry = [symmetry_operations(crystals[name]) for name in ("Cu", "Mg")]
    n = max(map(len, symmetry))
    symmetry = [np.concatenate([s, np.tile(np.eye(3), (n - len(s), 1, 1))]) for s in symmetry]
    rules = replace(RULES, steps=(0.08, 0.04), n_thicknesses=17, n_candidates=4)
    config = ScoreConfig(dynamical=rules)
    return jax.jit(
        lambda pattern, ranked: verify_dynamically(
            pattern, ranked, phases, jnp.asarray(symmetry, jnp.float32), K_MIN, K_MAX, config
        )
    )


def ranked_of(orientation, phase, log_likelihood):
    n = len(phase)
    number = jnp.arange(n, dtype=jnp.float32)
    return Ranked(
        jnp.asarray(np.array(orientation), jnp.float32),
        jnp.asarray(phase),
        0.1 * number,
        jnp.asarray(log_likelihood, jnp.float32),
        -number,
        jnp.full(n, jnp.nan),
    )


def row_of(ranked, number):
    """Where the candidate lies that was given as this one."""
    return int(np.flatnonzero(np.asarray(ranked.prior) == -number)[0])


def test_bloch_waves_turn_the_verdict(simulate, verdict, rng):
    """Two-beam theory prefers magnesium and a wrong orientation by ten nats; Bloch waves do not."""
    right = 0
    for truth in random_matrices(rng, 4):
        pattern = prepared(simulate(truth, 100.0))
        start = truth @ tilt(0.08, rng.uniform(0, 6))
        others = random_matrices(rng, 3)
        found = verdict(
            pattern, ranked_of([others[0], start, *others[1:]], [1, 0, 0, 1], [10, 0, 9, 8])
        )
        assert found.orientation.shape == (4, 3, 3)
        assert np.isfinite(found.log_likelihood).all() and np.isfinite(found.thickness).all()
        assert np.all((found.thickness >= 60) & (found.thickness <= 140))
        row = row_of(found, 1)
        np.testing.assert_array_equal(np.sort(found.prior), [-3, -2, -1, 0])
        assert int(found.phase[row]) == 0 and found.score[row] == np.float32(0.1)
        best = int(np.argmax(found.log_likelihood))
        right += best == row and angle_deg(found.orientation[row], truth) < 0.1
        assert best == row
    assert right >= 2


def test_where_counts_decide_bloch_waves_say_where_and_how_thick(simulate, verdict, rng):
    """They see the listed disks alone, and are sure of themselves."""
    truth = random_matrices(rng, 1)[0]
    pattern = prepared(simulate(truth, 100.0))
    start = truth @ tilt(0.08, rng.uniform(0, 6))
    others, behind = random_matrices(rng, 2), random_matrices(rng, 1)[0]
    given = ranked_of([others[0], start, others[1], behind], [1, 0, 0, 1], [3, 0, 2, 1])
    alone = verdict(pattern, given)
    evidence = jnp.asarray([20.0, 30.0, 25.0, 25.0 - RULES.behind - 20.0])
    found = verdict(pattern, given._replace(log_evidence=evidence, explained_light=0.01 * evidence))
    for number, log_likelihood in enumerate([3, 0, 2]):
        row, same = row_of(found, number), row_of(alone, number)
        assert found.log_likelihood[row] == log_likelihood
        assert found.log_evidence[row] == evidence[number]
        np.testing.assert_allclose(found.orientation[row], alone.orientation[same], atol=1e-5)
        assert float(found.thickness[row]) == pytest.approx(float(alone.thickness[same]), abs=0.1)
    assert found.log_likelihood[row_of(found, 3)] == LOST


def test_each_candidate_is_judged_as_its_own_phase(simulate, verdict, rng):
    for right in (0, 1):
        truth = random_matrices(rng, 1)[0]
        pattern = prepared(simulate(truth, 100.0, phase=right))
        candidates = [truth, truth, *random_matrices(rng, 2)]
        found = verdict(pattern, ranked_of(candidates, [0, 1, 0, 1], [1, 1, 0, 0]))
        best = int(np.argmax(found.log_likelihood))
        assert best == row_of(found, right) and int(found.phase[best]) == right
        wrong = row_of(found, 1 - right)
        assert found.log_likelihood[best] > found.log_likelihood[wrong] + 10


def test_candidates_far_behind_are_given_no_chance(simulate, verdict, rng):
    truth = random_matrices(rng, 1)[0]
    others = random_matrices(rng, 3)
    behind = RULES.behind
    likelihood = [0.0, -behind - 1, 1 - behind, -behind - 100]
    candidates = [truth, *others]
    found = verdict(
        prepared(simulate(truth, 90.0)), ranked_of(candidates, [0, 0, 1, 1], likelihood)
    )
    for number, is_judged in enumerate([True, False, True, False]):
        row = row_of(found, number)
        assert np.isfinite(found.thickness[row]) == is_judged
        assert (found.log_likelihood[row] > LOST) == is_judged
        if not is_judged:
            assert found.log_likelihood[row] == LOST
            np.testing.assert_array_equal(found.orientation[row], candidates[number])


def test_the_same_summit_is_judged_once(simulate, verdict, crystals, rng):
    """An equivalent of the best is no other candidate; the same orientation of another phase is."""
    truth = random_matrices(rng, 1)[0]
    equivalent = symmetry_operations(crystals["Cu"])[7] @ truth @ tilt(0.2, 0.0)
    candidates = [truth, equivalent, truth, random_matrices(rng, 1)[0]]
    found = verdict(
        prepared(simulate(truth, 90.0)), ranked_of(candidates, [0, 0, 1, 0], [3, 2.9, 2, 1])
    )
    judged = [np.isfinite(found.thickness[row_of(found, number)]) for number in range(4)]
    assert judged == [True, False, True, True]


def test_ties_keep_finite_numbers(simulate, verdict, rng):
    """The same orientation twice, and equal likelihoods: one of them stays."""
    truth = random_matrices(rng, 1)[0]
    pattern = prepared(simulate(truth, 90.0))
    for log_likelihood in ([0.0] * 4, [-1e4] * 4):
        found = verdict(pattern, ranked_of([truth] * 4, [0, 0, 0, 0], log_likelihood))
        assert np.isfinite(found.log_likelihood).all() and np.isfinite(found.orientation).all()
        assert np.isfinite(found.thickness).sum() == 1
        assert (found.log_likelihood > LOST).sum() == 1
    turned = [truth, *random_matrices(rng, 3)]
    found = verdict(pattern, ranked_of(turned, [0, 0, 0, 0], [1.0] * 4))
    assert np.isfinite(found.log_likelihood).all() and np.isfinite(found.thickness).all()


@pytest.mark.slow
def test_more_candidates_than_are_judged(simulate, verdict, rng):
    """The likeliest different ones are kept."""
    truth = random_matrices(rng, 1)[0]
    candidates = [*random_matrices(rng, 5), truth]
    found = verdict(
        prepared(simulate(truth, 90.0)), ranked_of(candidates, [0] * 6, [1, 5, 2, 4, 0, 3])
    )
    np.testing.assert_array_equal(np.sort(found.prior), [-5, -3, -2, -1])
    assert int(np.argmax(found.log_likelihood)) == row_of(found, 5)
