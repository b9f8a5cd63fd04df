# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict on patterns of known origin, of one phase or two."""

from dataclasses import replace
from functools import partial

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
from jaxstem.verification.config import ScoreConfig
from jaxstem.verification.ranking import Candidates, Forward
from jaxstem.verification.refinement import Proposals, hopeful, verify

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = ScoreConfig(n_modes=4)
COARSE_AND_FINE = replace(CONFIG, levels=CONFIG.levels[:2])


def best_of(ranked):
    """Of each pattern the best orientation by likelihood, its score, and all candidates."""
    best = jnp.argmax(ranked.log_likelihood, axis=1)[:, None]
    score = jnp.take_along_axis(ranked.score, best, 1)[:, 0]
    return jnp.take_along_axis(ranked.orientation, best[..., None, None], 1)[:, 0], score, ranked


@pytest.fixture(scope="module")
def judge(two):
    """`verify` of four patterns with two phases."""
    materials, phases = two
    physics = joint_operations(materials), materials[0].wavelength, materials[0].k_max
    run = partial(verify, config=COARSE_AND_FINE, log_odds=InferConfig().log_odds, at_once=1)
    return jax.jit(
        lambda disks, around: run(jax.vmap(prepared_pattern)(disks), around, phases, *physics)
    )


@pytest.fixture(scope="module")
def check(two, judge):
    """`best_of` what `judge` finds of copper where nothing else comes into question."""
    _, mg = two[0]

    def of_copper(disks, around):
        ranked = judge(disks, jnp.pad(around, ((0, 0), (0, len(mg.grid))), constant_values=-50.0))
        of_phase = ranked.phase == 0
        likelihood = jnp.where(of_phase, ranked.log_likelihood, -jnp.inf)
        return best_of(ranked._replace(log_likelihood=likelihood))

    return of_copper


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.slow
def test_verify_is_invariant(copper, check, seed):
    """Order and padding of the disks, in-plane turns and symmetry do not change the answer."""
    rng = np.random.default_rng(seed)
    truth = jnp.asarray(random_matrices(rng, 1)[0])
    disks = thick_foil_disks(truth, copper, 22)
    around = partial(log_probability_around, material=copper)
    spin = jnp.asarray(turn_deg([0, 0, rng.uniform(0, 360)]))
    operation = jnp.asarray(copper.operations[rng.integers(24)], jnp.float32)
    longer = lambda d: Disks(*(jnp.pad(x, (0, 24 - len(x))) for x in d))  # noqa: E731
    order = rng.permutation(24)
    cases = [
        (longer(disks), truth),
        (Disks(*(x[order] for x in longer(disks))), truth),
        (longer(thick_foil_disks(truth @ spin, copper, 22)), truth @ spin),
        (longer(thick_foil_disks(operation @ truth, copper, 22)), operation @ truth),
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
def test_verify_does_not_see_the_padding(copper, check, rng):
    truth = jnp.asarray(random_matrices(rng, 4))
    disks = jax.vmap(lambda r: thick_foil_disks(r, copper, 10))(truth)
    around = jax.vmap(lambda r: log_probability_around(r, copper))(truth)
    # one free place at least: a full pattern may have lost disks
    short, long = (
        check(Disks(*(jnp.pad(x, ((0, 0), (0, n))) for x in disks)), around)[0] for n in (1, 14)
    )
    np.testing.assert_allclose(short, long, atol=1e-5)


@pytest.mark.slow
def test_verify_finds_the_turn_that_the_network_missed(copper, check, rng):
    """Given only the pseudo-symmetric turn about the beam, the truth is among the verified."""
    truth = jnp.asarray(random_matrices(rng, 4))
    disks = jax.vmap(lambda r: thick_foil_disks(r, copper, 24))(truth)
    around = jnp.stack(
        [
            log_probability_around(r @ np.float32(rotations.HALF_TURN_ABOUT_BEAM), copper)
            for r in truth
        ]
    )
    answers, _, _ = check(disks, around)
    assert np.median(angle_deg(answers, truth, copper.operations)) < 2.0


def test_only_the_likeliest_candidates_climb(copper, cells, rng):
    """By their odds where they are: the truth among other orientations, unless its prior rules it
    out or it does not lie apart from another; all of them where not more may climb.
    """
    reflectors = copper.reflectors()
    truth = random_matrices(rng, 1)[0].astype(np.float32)
    orientation = jnp.asarray(np.stack([*cells[rng.choice(len(cells), 5, replace=False)], truth]))
    lists = (
        jnp.broadcast_to(x, (6, *x.shape)) for x in (reflectors.g, reflectors.inverse_extinction)
    )
    candidates = Candidates(orientation, jnp.zeros(6, int), jnp.zeros(6), Forward(*lists))
    pattern = prepared_pattern(thick_foil_disks(truth, copper, 24))
    physics = copper.wavelength, copper.k_max
    config = replace(CONFIG, n_climbing=2)

    @jax.jit
    def left(prior, apart):
        found = Proposals(candidates._replace(prior=prior), apart)
        log_odds = InferConfig(prior_weight=1.0).log_odds
        return hopeful(pattern, found, 1, *physics, config, log_odds)

    def holds_truth(found):
        same = np.abs(found.candidates.orientation - truth).max(axis=(1, 2)) < 1e-6
        return bool((same & np.asarray(found.apart)).any())

    even, all_apart = jnp.zeros(6), jnp.ones(6, bool)
    found = left(even, all_apart)
    assert found.apart.shape == (2,) and holds_truth(found)
    assert not holds_truth(left(even.at[5].set(-1e3), all_apart))
    # the second best climbs, too, however far it trails
    ahead = left(even.at[5].set(10.0), all_apart)
    assert ahead.apart.all() and holds_truth(ahead)
    assert not holds_truth(left(even, all_apart.at[5].set(False)))
    few = Proposals(candidates, all_apart)
    config = replace(config, n_climbing=6)
    assert hopeful(pattern, few, 1, *physics, config, InferConfig().log_odds) is few


@pytest.fixture
def pairs_in_one_place(copper, tables, rng):
    """(least angles between candidates) to how many pairs of them are left that lie in one place,
    over twelve patterns, and to the best score of each pattern.
    """
    truth = jnp.asarray(random_matrices(rng, 12))
    patterns = jax.vmap(lambda r: prepared_pattern(thick_foil_disks(r, copper, 24)))(truth)
    around = jax.vmap(lambda r: log_probability_around(r, copper))(truth)
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
            apart = angle_deg(orientation[:, None], orientation, operations[0])
            near += int((apart[np.triu_indices(len(apart), 1)] < 0.3).sum())
        return near, np.asarray(found.score).max(axis=1)

    return pairs


@pytest.mark.slow
def test_candidates_in_one_place_count_once(pairs_in_one_place):
    """Those that would climb lie apart, while without regard for it most of them do not; the best
    of them stays.
    """
    apart, best = pairs_in_one_place(tuple(level.same for level in CONFIG.levels))
    regardless, best_of_all = pairs_in_one_place((0.0, 0.0, 0.0))
    print(apart, regardless)
    assert regardless >= 18 and apart < regardless / 2  # some have no rival at all
    np.testing.assert_allclose(best, best_of_all, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("phase", [0, 1])
def test_verification_finds_the_phase_that_the_network_thinks_unlikely(two, judge, phase, rng):
    """The distribution is right within each phase and in favour of the wrong one."""
    materials, _ = two
    right, other = materials[phase], materials[1 - phase]
    share = [0.01 if p == phase else 0.99 for p in (0, 1)]

    def found():
        """Of four patterns: is the phase right, and the orientation within 5°?"""
        truth = jnp.asarray(random_matrices(rng, 4))
        disks = jax.vmap(lambda r: thick_foil_disks(r, right, 24))(truth)
        # free places: a full pattern may have lost disks
        longer = Disks(*(jnp.pad(x, ((0, 0), (0, 4))) for x in disks))
        parts = [
            jax.vmap(lambda r, m=m: log_probability_around(r, m))(truth) + np.log(s)
            for m, s in zip(materials, share, strict=True)
        ]
        ranked = judge(longer, jnp.concatenate(parts, axis=1))
        assert all(set(phases) == {0, 1} for phases in np.asarray(ranked.phase).tolist())
        best = np.arange(4), np.argmax(ranked.log_likelihood, axis=1)
        angle = angle_deg(np.asarray(ranked.orientation)[best], truth, right.operations)
        return np.asarray(ranked.phase)[best] == phase, angle < 5

    phases, near = np.concatenate([found() for _ in range(6)], axis=1)
    assert phases.all() and near.sum() >= 18
    assert other.crystal.name != right.crystal.name


@pytest.mark.slow
def test_two_phases_find_what_one_finds(two, judge, rng):
    """Where the other phase is out of the question, its presence changes nothing, unless rounding
    decides between two steps of the search.
    """
    (copper, mg), (tables, _) = two
    truth = jnp.asarray(random_matrices(rng, 4))
    disks = jax.vmap(lambda r: thick_foil_disks(r, copper, 14))(truth)
    disks = Disks(*(jnp.pad(x, ((0, 0), (0, 10))) for x in disks))
    around = jax.vmap(lambda r: log_probability_around(r, copper))(truth)
    physics = joint_operations([copper]), copper.wavelength, copper.k_max
    run = partial(verify, config=COARSE_AND_FINE, log_odds=InferConfig().log_odds, at_once=1)
    alone = jax.jit(lambda d, p: run(jax.vmap(prepared_pattern)(d), p, [tables], *physics))
    alone = alone(disks, around)
    both = judge(disks, jnp.pad(around, ((0, 0), (0, len(mg.grid))), constant_values=-50.0))
    best, same = jnp.argmax(alone.log_likelihood, axis=1), []
    for i in range(4):
        near = np.abs(both.orientation[i] - alone.orientation[i, best[i]]).max(axis=(1, 2)) < 1e-4
        gain = np.abs(both.log_likelihood[i] - alone.log_likelihood[i, best[i]])
        same.append(bool((near & (both.phase[i] == 0) & (gain < 1e-2)).any()))
    assert sum(same) >= 3
