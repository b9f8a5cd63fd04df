# SPDX-License-Identifier: GPL-3.0-or-later
"""Angles between candidates, and the best of each phase that are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_matrices

from jaxstem.inference.step import joint_operations
from jaxstem.orientation.symmetry import misorientation
from jaxstem.verification.ranking import Candidates, Forward, angles_between, keep_best, outdone

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 5])
@pytest.mark.slow
def test_angles_between_candidates_are_misorientations(copper, two, n, rng):
    materials, _ = two
    operations = joint_operations(materials)
    orientation, phase = jnp.asarray(random_matrices(rng, n)), rng.integers(0, 2, n)
    orientation = jnp.concatenate([orientation, operations[phase[0], 1] @ orientation[:1]])
    phase = np.append(phase, phase[0])
    apart = angles_between(orientation, jnp.asarray(phase), operations)
    angle = jax.jit(misorientation)
    for i, j in np.ndindex(apart.shape):
        expected = np.inf
        if phase[i] == phase[j]:
            symmetry = jnp.asarray(materials[phase[i]].operations, jnp.float32)
            expected = angle(orientation[i], orientation[j], symmetry)
        np.testing.assert_allclose(apart[i, j], expected, atol=3e-3)


@pytest.mark.parametrize("n_phases", [1, 2, 3])
def test_half_of_the_places_are_each_phases(n_phases, rng):
    n, count = 10, 60
    phase = rng.integers(n_phases, size=count)
    score = np.round(rng.normal(size=count) - phase, 1).astype(np.float32)  # with ties
    index = jnp.arange(count)
    candidates = Candidates(index, jnp.asarray(phase), index, Forward(index, index))
    kept, kept_score = keep_best(candidates, jnp.asarray(score), n, n_phases)
    keep = np.asarray(kept.orientation)
    assert len(set(keep)) == len(keep) == n + (n_phases - 1) * n // 2
    np.testing.assert_array_equal(kept_score, score[keep])
    np.testing.assert_array_equal(kept.phase, phase[keep])
    for p in range(n_phases):
        own, ours = np.sort(score[phase == p])[::-1], np.sort(score[keep][phase[keep] == p])[::-1]
        assert len(ours) >= min(n // 2, len(own))
        np.testing.assert_array_equal(ours, own[: len(ours)])
    assert set(np.sort(score)[::-1][: n // 2]) <= set(score[keep])
    few = jax.tree.map(lambda x: x[:7], candidates)
    assert keep_best(few, jnp.asarray(score[:7]), n, n_phases)[0] is few


def test_of_candidates_on_one_summit_the_best_stays():
    """Three in one place, one alone, and one that is as near as it may be."""
    place = jnp.deg2rad(jnp.array([0.0, 0.05, 0.1, 20.0, 20.5]))
    apart = jnp.abs(place[:, None] - place)
    gone = outdone(apart, jnp.array([1.0, 3.0, 2.0, 0.5, 9.0]), jnp.deg2rad(0.3))
    np.testing.assert_array_equal(gone, [True, False, True, False, False])
    tied = outdone(jnp.zeros((4, 4)), jnp.ones(4))
    assert int((~tied).sum()) == 1
