# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers and confidences by hand from ranked candidates, of one phase or two, or of none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import angle_deg
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.files.orientation_map import NO_CRYSTAL
from jaxstem.inference.config import InferConfig
from jaxstem.inference.verdict import summarise
from jaxstem.network.model import NEVER
from jaxstem.orientation import rotations
from jaxstem.orientation.space import joint_space, orientation_space
from jaxstem.verification.ranking import Ranked

pytestmark = pytest.mark.usefixtures("quick_compile")


def ranked_of(orientations, likelihood, prior=None, score=None, phase=None, thickness=None):
    n = len(orientations)
    as_float = lambda x, default: jnp.asarray(default if x is None else x, jnp.float32)  # noqa: E731
    return Ranked(
        jnp.asarray(orientations, jnp.float32),
        jnp.asarray(np.zeros(n, int) if phase is None else phase),
        as_float(score, np.linspace(0.9, 0.5, n)),
        as_float(likelihood, None),
        as_float(prior, np.zeros(n)),
        as_float(thickness, np.full(n, np.nan)),
    )


@pytest.fixture(scope="module")
def summary(copper):
    """`summarise` of candidates of copper, with no crystal out of the question."""
    operations = jnp.asarray(copper.operations, jnp.float32)[None]
    return jax.jit(lambda ranked: summarise(ranked, jnp.asarray(NEVER), operations, InferConfig()))


def turn(degrees, axis=(0, 0, 1)):
    return Rotation.from_rotvec(np.deg2rad(degrees) * np.array(axis)).as_matrix()


BASE = turn(50, np.array([1, 2, 3]) / np.sqrt(14))


def test_summary_by_hand(summary, copper):
    """Two near candidates, one of them twice, the beam turn, and one far away."""
    operation = copper.operations[5]
    near, beam, far = (
        BASE @ turn(3),
        BASE @ rotations.HALF_TURN_ABOUT_BEAM,
        BASE @ turn(25, [1, 0, 0]),
    )
    orientations = [near, far, BASE, operation @ BASE, beam]
    weight = InferConfig().likelihood_weight
    share = np.array([0.2, 0.1, 0.4, 0.4, 0.25])
    thickness = [20, 30, 40, 50, 60]
    answer = summary(ranked_of(orientations, np.log(share) / weight, thickness=thickness))
    np.testing.assert_allclose(answer.orientation, BASE, atol=1e-6)
    assert float(answer.score) == pytest.approx(0.7) and float(answer.thickness) == 40
    total = 0.2 + 0.1 + 0.4 + 0.25  # the equivalent is the same candidate again
    assert float(answer.confidence) == pytest.approx(0.6 / total, abs=1e-4)
    assert float(answer.confidence_mod180) == pytest.approx(0.85 / total, abs=1e-4)
    np.testing.assert_allclose(answer.second_orientation, beam, atol=1e-6)
    assert float(answer.second_score) == pytest.approx(0.5)


def test_summary_without_a_second(summary):
    answer = summary(ranked_of([BASE, BASE @ turn(2), BASE @ turn(-3)], [1.0, 0.5, 0.2]))
    assert float(answer.confidence) == pytest.approx(1.0, abs=1e-5)
    assert np.isnan(answer.second_orientation).all() and np.isnan(answer.second_score)


def test_prior_decides_between_equal_patterns(summary):
    orientations = [BASE, BASE @ rotations.HALF_TURN_ABOUT_BEAM]
    for best in (0, 1):
        prior = np.where(np.arange(2) == best, 0.0, -2.0)
        answer = summary(ranked_of(orientations, [3.0, 3.0], prior))
        np.testing.assert_allclose(answer.orientation, orientations[best], atol=1e-6)
        assert 0.5 < answer.confidence < 0.95
        assert float(answer.confidence_mod180) == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), spread=st.floats(0.5, 60))
def test_summary_holds_its_promises(summary, copper, seed, spread):
    rng = np.random.default_rng(seed)
    orientations = np.array(
        [
            BASE @ Rotation.from_rotvec(np.deg2rad(spread) * rng.normal(size=3)).as_matrix()
            for _ in range(12)
        ]
    )
    orientations[6:9] = orientations[:3] @ rotations.HALF_TURN_ABOUT_BEAM
    ranked = ranked_of(orientations, 10 * rng.normal(size=12), rng.normal(size=12))
    answer = summary(ranked)
    assert 0 <= answer.confidence <= answer.confidence_mod180 + 1e-6 <= 1 + 2e-6
    config = InferConfig()
    log_odds = config.log_odds(ranked.log_likelihood, ranked.prior)
    best = np.asarray(ranked.orientation)[np.argmax(log_odds)]
    np.testing.assert_allclose(answer.orientation, best, atol=1e-6)  # by way of a quaternion
    away = angle_deg(answer.orientation, ranked.orientation, copper.operations)
    if np.isnan(answer.second_score):
        assert away.max() < 5.01
    else:
        second = angle_deg(answer.orientation, answer.second_orientation, copper.operations)
        assert second > 4.99


@pytest.fixture(scope="module")
def mixed(copper, crystals):
    """`summarise` of candidates of copper (phase 0) and magnesium (phase 1)."""
    space = joint_space(
        [copper.space(), orientation_space(symmetry_operations(crystals["Mg"]), [], 0.1)]
    )
    return jax.jit(lambda ranked, none: summarise(ranked, none, space.operations, InferConfig()))


def shares(mixed, share, none, **rest):
    """The answer for candidates of these posterior shares, no crystal having `none`."""
    config = InferConfig()
    likelihood = np.log(share) / config.likelihood_weight
    of_none = np.log(none) - config.likelihood_weight * config.chance
    ranked = ranked_of(likelihood=likelihood, **rest)
    return mixed(ranked, jnp.asarray(of_none / config.log_odds(0.0, 1.0), jnp.float32))


def test_the_likeliest_phase_is_answered_by_its_best_candidate(mixed):
    """Magnesium has the single best candidate, copper together more."""
    far, other = BASE @ turn(25, [1, 0, 0]), BASE @ turn(20, [0, 1, 0])
    orientations = [BASE, BASE, far, other, BASE @ rotations.HALF_TURN_ABOUT_BEAM]
    answer = shares(
        mixed, [0.3, 0.25, 0.2, 0.05, 0.1], 0.1, orientations=orientations, phase=[1, 0, 0, 1, 0]
    )
    assert int(answer.phase) == 0
    np.testing.assert_allclose(answer.orientation, BASE, atol=1e-6)
    found = [answer.confidence, answer.confidence_mod180, answer.phase_confidence]
    np.testing.assert_allclose(found, [0.25, 0.35, 0.55], atol=1e-3)
    # the runner-up is the same rotation, of the other crystal
    assert int(answer.second_phase) == 1
    np.testing.assert_allclose(answer.second_orientation, BASE, atol=1e-6)


def test_no_crystal_is_an_answer(mixed):
    orientations = [BASE, BASE @ turn(25, [1, 0, 0]), BASE]
    candidates = dict(orientations=orientations, phase=[0, 0, 1], thickness=[90, 90, 90])
    answer = shares(mixed, [0.2, 0.1, 0.25], 0.45, **candidates)
    assert int(answer.phase) == NO_CRYSTAL
    assert np.isnan(answer.orientation).all() and np.isnan(answer.score)
    assert np.isnan(answer.thickness)
    found = [answer.confidence, answer.confidence_mod180, answer.phase_confidence]
    np.testing.assert_allclose(found, 0.45, atol=1e-3)
    assert int(answer.second_phase) == 1
    answer = shares(mixed, [0.35, 0.1, 0.15], 0.4, **candidates)
    assert int(answer.phase) == 0 and float(answer.thickness) == 90


def test_symmetry_is_that_of_the_phase(mixed):
    """A turn by 60° about c gives the same crystal of Mg and another one of Cu."""
    sixth = turn(60) @ BASE
    for phase, expected in ((0, 0.5), (1, 0.9)):
        answer = shares(
            mixed, [0.5, 0.4], 0.1, orientations=[BASE, sixth @ turn(2)], phase=[phase, phase]
        )
        assert float(answer.confidence) == pytest.approx(expected, abs=1e-3)
