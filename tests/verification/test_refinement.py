# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict on patterns of known origin, of one phase or two."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    angle_deg,
    log_probability_around,
    prepared_pattern,
    random_matrices,
    thick_foil_disks,
    turn_deg,
)

from jaxstem.diffraction.geometry import Disks
from jaxstem.inference.config import InferConfig
from jaxstem.inference.step import joint_operations
from jaxstem.orientation import rotations
from jaxstem.orientation.symmetry import misorientation
from jaxstem.verification.config import ScoreConfig
from jaxstem.verification.refinement import verify

pytestmark = pytest.mark.usefixtures("quick_compile")
CONFIG = ScoreConfig(n_modes=4)
COARSE_AND_FINE = replace(CONFIG, levels=CONFIG.levels[:2])


@pytest.fixture(scope="module")
def check(copper, tables):
    """`verify` of a batch of patterns: best orientation by likelihood, its score."""
    run = partial(
        verify,
        phases=[tables],
        operations=joint_operations([copper]),
        wavelength=copper.wavelength,
        k_max=copper.k_max,
        config=COARSE_AND_FINE,
        log_odds=InferConfig().log_odds,
        at_once=1,
    )

    def best_of(ranked):
        best = jnp.argmax(ranked.log_likelihood)
        return ranked.orientation[best], ranked.score[best], ranked

    return jax.jit(
        lambda disks, around: jax.vmap(best_of)(run(jax.vmap(prepared_pattern)(disks), around))
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_verify_is_invariant(copper, cells, check, seed):
    """Order and padding of the disks, in-plane turns and symmetry do not change the answer."""
    rng = np.random.default_rng(seed)
    truth = jnp.asarray(random_matrices(rng, 1)[0])
    disks = thick_foil_disks(truth, copper, 14)
    around = partial(log_probability_around, material=copper, cells=cells)
    spin = jnp.asarray(turn_deg([0, 0, rng.uniform(0, 360)]))
    operation = jnp.asarray(copper.operations[rng.integers(24)], jnp.float32)
    longer = lambda d: Disks(*(jnp.pad(x, (0, 24 - len(x))) for x in d))  # noqa: E731
    order = rng.permutation(24)
    cases = [
        (longer(disks), truth),
        (Disks(*(x[order] for x in longer(disks))), truth),
        (longer(thick_foil_disks(truth @ spin, copper, 14)), truth @ spin),
        (longer(thick_foil_disks(operation @ truth, copper, 14)), operation @ truth),
    ]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *(case[0] for case in cases))
    answers, scores, ranked = check(batch, jnp.stack([around(r) for _, r in cases]))
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
    turned_back = answers[2] @ spin.T
    others = jnp.stack([answers[3], turned_back, truth])
    apart = angle_deg(others, answers[0], copper.operations)
    print(apart, scores)
    assert apart[0] < 0.02 and apart[1] < 1.5 and apart[2] < 3.0
    np.testing.assert_allclose(scores[2:], scores[0], atol=0.02)
    assert ranked.score.min() >= 0 and ranked.score.max() <= 1
    assert np.isnan(ranked.thickness).all()  # two-beam theory does not tell it


@pytest.mark.slow
def test_verify_does_not_see_the_padding(copper, cells, check, rng):
    truth = jnp.asarray(random_matrices(rng, 4))
    disks = jax.vmap(lambda r: thick_foil_disks(r, copper, 10))(truth)
    around = jax.vmap(lambda r: log_probability_around(r, copper, cells))(truth)
    # one free place at least: a full pattern may have lost disks
    short, long = (
        check(Disks(*(jnp.pad(x, ((0, 0), (0, n))) for x in disks)), around)[0] for n in (1, 14)
    )
    np.testing.assert_allclose(short, long, atol=1e-5)


def test_verify_finds_the_turn_that_the_network_missed(copper, cells, check, rng):
    """Given only the pseudo-symmetric turn about the beam, the truth is among the verified."""
    truth = jnp.asarray(random_matrices(rng, 4))
    disks = jax.vmap(lambda r: thick_foil_disks(r, copper, 24))(truth)
    around = jnp.stack(
        [
            log_probability_around(
                r @ jnp.asarray(rotations.HALF_TURN_ABOUT_BEAM, jnp.float32), copper, cells
            )
            for r in truth
        ]
    )
    answers, _, _ = check(disks, around)
    assert np.median(angle_deg(answers, truth, copper.operations)) < 2.0


@pytest.fixture(scope="module")
def pairs_in_one_place(copper, tables, cells):
    """(least angles between candidates) to how many pairs of them are left that lie in one place,
    over twelve patterns, and to the best score of each pattern.
    """
    rng = np.random.default_rng(3)
    truth = jnp.asarray(random_matrices(rng, 12))
    patterns = jax.vmap(lambda r: prepared_pattern(thick_foil_disks(r, copper, 24)))(truth)
    around = jax.vmap(lambda r: log_probability_around(r, copper, cells))(truth)
    operations = joint_operations([copper])
    still = replace(CONFIG.likelihood, steps=(1e-6, 1e-6))  # they climb nowhere

    def pairs(same):
        levels = tuple(
            replace(level, same=width) for level, width in zip(CONFIG.levels, same, strict=True)
        )
        config = replace(CONFIG, levels=levels, likelihood=still)
        physics = operations, copper.wavelength, copper.k_max, config, InferConfig().log_odds
        found = jax.jit(
            lambda patterns, around: verify(patterns, around, [tables], *physics, at_once=1)
        )(patterns, around)
        near = 0
        for orientation in np.asarray(found.orientation):
            apart = misorientation(orientation[:, None], orientation, operations[0])
            near += int((np.rad2deg(apart)[np.triu_indices(len(apart), 1)] < 0.3).sum())
        return near, np.asarray(found.score).max(axis=1)

    return cache(pairs)


def test_candidates_in_one_place_count_once(pairs_in_one_place):
    """Those that would climb lie apart."""
    assert pairs_in_one_place(tuple(level.same for level in CONFIG.levels))[0] < 9


@pytest.mark.slow
def test_without_regard_for_it_most_candidates_lie_in_one_place(pairs_in_one_place):
    """So the test above can fail; and the best of those in one place stays."""
    apart, best = pairs_in_one_place(tuple(level.same for level in CONFIG.levels))
    regardless, best_of_all = pairs_in_one_place((0.0, 0.0, 0.0))
    assert regardless >= 18 and apart < regardless / 2  # some have no rival at all
    np.testing.assert_allclose(best, best_of_all, atol=0.01)


@pytest.fixture(scope="module")
def judge(two):
    """`verify` with two phases."""
    materials, phases = two
    copper, symmetry = materials[0], joint_operations(materials)

    @jax.jit
    def one(disks, log_probability):
        physics = copper.wavelength, copper.k_max, COARSE_AND_FINE, InferConfig().log_odds
        alone = jax.tree.map(lambda x: x[None], (prepared_pattern(disks), log_probability))
        ranked = verify(*alone, phases, symmetry, *physics, at_once=1)
        return jax.tree.map(lambda x: x[0], ranked)

    return one


@pytest.mark.parametrize("phase", [0, 1])
def test_verification_finds_the_phase_that_the_network_thinks_unlikely(two, judge, phase, rng):
    """The distribution is right within each phase and in favour of the wrong one."""
    materials, _ = two
    right, other = materials[phase], materials[1 - phase]
    found = []
    for truth in jnp.asarray(random_matrices(rng, 4)):
        disks = thick_foil_disks(truth, right, 20)
        share = [0.01 if p == phase else 0.99 for p in (0, 1)]
        parts = [
            log_probability_around(truth, m) + np.log(s)
            for m, s in zip(materials, share, strict=True)
        ]
        ranked = judge(disks, jnp.concatenate(parts))
        assert set(np.asarray(ranked.phase)) == {0, 1}
        best = int(jnp.argmax(ranked.log_likelihood))
        angle = angle_deg(ranked.orientation[best], truth, right.operations)
        found.append(int(ranked.phase[best]) == phase and angle < 5)
    assert sum(found) >= 3
    assert other.crystal.name != right.crystal.name


def test_two_phases_find_what_one_finds(two, check, judge, cells, rng):
    """Where the other phase is out of the question, its presence changes nothing, unless rounding
    decides between two steps of the search.
    """
    (copper, mg), _ = two
    truth = jnp.asarray(random_matrices(rng, 4))
    disks = jax.vmap(lambda r: thick_foil_disks(r, copper, 14))(truth)
    longer = lambda n: Disks(*(jnp.pad(x, ((0, 0), (0, n - 14))) for x in disks))  # noqa: E731
    around = jax.vmap(lambda r: log_probability_around(r, copper, cells))(truth)
    _, _, alone = check(longer(24), around)
    best, same = jnp.argmax(alone.log_likelihood, axis=1), []
    for i in range(4):
        one = jax.tree.map(lambda x, i=i: x[i], longer(20))
        both = judge(one, jnp.append(around[i], jnp.full(len(mg.grid), -50.0)))
        near = np.abs(both.orientation - alone.orientation[i, best[i]]).max(axis=(1, 2)) < 1e-4
        gain = np.abs(both.log_likelihood - alone.log_likelihood[i, best[i]])
        same.append(bool((near & (both.phase == 0) & (gain < 1e-2)).any()))
    assert sum(same) >= 3
