# SPDX-License-Identifier: GPL-3.0-or-later
"""Angles as scipy has them, and beliefs on trees as the sum over all labelings has them."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import turn_deg
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from jaxstem.scan.neighbours import (
    STEPS,
    Coupling,
    compatibility,
    moved,
    pair_sums,
    propagated,
    squared_angles,
    squared_misorientations,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

COUPLING = Coupling(*(jnp.float32(x) for x in (0.05, 1.3, 0.8)))
DIAGONAL = 0.7


def as_squares(angle):
    finite = np.isfinite(angle)
    return np.where(finite, 4 * np.sin(0.5 * np.where(finite, angle, 0.0)) ** 2, np.inf)


@pytest.fixture(scope="module")
def squares():
    return jax.jit(squared_angles)


def components_first(q):
    """(..., ny, nx, 4) to (..., 4, ny, nx)."""
    return np.moveaxis(q, -1, -3)


def test_squared_angles_are_scipys(squares, symmetry, turns, quaternions, angle, rng):
    """Of any orientations, of near ones and of those that are equivalent."""
    shape = (3, 2, 10)
    a, b = (Rotation.random(60, random_state=rng.integers(2**31)) for _ in range(2))
    phase, its_phase = rng.integers(-1, 2, (2, *shape))
    equivalent = Rotation.concatenate([symmetry[p][rng.integers(12)] for p in phase.ravel()])
    small = np.deg2rad(rng.uniform(0, 4, 60)) * (rng.random(60) < 0.7)
    axis = rng.normal(size=(60, 3))
    near = Rotation.from_rotvec(small[:, None] * axis / np.linalg.norm(axis, axis=1)[:, None])
    for other, other_phase in ((b, its_phase), (equivalent * a * near, phase)):
        q, p = (quaternions(x, *shape) for x in (a, other))
        found = squares(components_first(q), components_first(p), phase, other_phase, turns)
        expected = as_squares(angle(q, p, phase, other_phase))
        np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
        assert np.isinf(expected).any()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=4e-6)
    straight = angle(q, p, phase, phase)[phase >= 0]
    np.testing.assert_allclose(straight, small[phase.ravel() >= 0], atol=1e-3)


def test_misorientations_of_neighbours(turns, quaternions, angle, rng):
    """Of each candidate and each of the neighbour; infinite at the edges."""
    n, shape = 2, (3, 4)
    q = quaternions(Rotation.random(24, random_state=rng.integers(2**31)), n, *shape)
    phase = rng.integers(-1, 2, (n, *shape))
    found = jax.jit(squared_misorientations)(components_first(q), phase, turns)
    expected = np.full((4, n, n, *shape), np.inf)
    for k, i, j, row, column in np.ndindex(expected.shape):
        there = row + STEPS[k][0], column + STEPS[k][1]
        if 0 <= there[0] < 3 and 0 <= there[1] < 4:
            pair = q[i, row, column], q[(j, *there)], phase[i, row, column], phase[(j, *there)]
            expected[k, i, j, row, column] = as_squares(angle(*map(np.asarray, pair)))
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=4e-6)


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, -1), (-1, -1), (-1, 1), (0, -5), (4, 2)])
def test_moved_to_the_neighbour(step, rng):
    x = rng.normal(size=(2, 3, 5)).astype(np.float32)
    expected = np.full_like(x, 7.0)
    for row, column in product(range(3), range(5)):
        there = row + step[0], column + step[1]
        if 0 <= there[0] < 3 and 0 <= there[1] < 5:
            expected[:, row, column] = x[:, there[0], there[1]]
    np.testing.assert_array_equal(moved(jnp.asarray(x), step, 7.0), expected)


def pairs_of(shape):
    """(step, position, neighbour) of all pairs of neighbours of a scan."""
    for k, (down, right) in enumerate(STEPS):
        for row, column in np.ndindex(shape):
            there = row + down, column + right
            if 0 <= there[0] < shape[0] and 0 <= there[1] < shape[1]:
                yield k, (row, column), there


def joint_probability(share, factor):
    """Probabilities of all labelings (n, ny, nx), and these, from shares (L, ny, nx) and the
    factors (4, L, L, ny, nx) of pairs.
    """
    share, factor = np.asarray(share, float), np.asarray(factor, float)
    shape = share.shape[1:]
    labels = np.array(list(product(range(len(share)), repeat=shape[0] * shape[1])))
    labels = labels.reshape(-1, *shape)
    weight = np.ones(len(labels))
    for place in np.ndindex(shape):
        weight *= share[(labels[:, *place], *place)]
    for k, here, there in pairs_of(shape):
        weight *= factor[(k, labels[:, *here], labels[:, *there], *here)]
    return weight / weight.sum(), labels


def random_tree(rng, shape):
    """Pairs of neighbours that join all positions of a scan without a circle."""
    pairs = list(pairs_of(shape))
    own = {place: i for i, place in enumerate(np.ndindex(shape))}
    chosen = []
    for i in rng.permutation(len(pairs)):
        _, here, there = pairs[i]
        if own[here] != own[there]:
            gone = own[there]
            own = {place: own[here] if x == gone else x for place, x in own.items()}
            chosen.append(pairs[i])
    return chosen


@pytest.fixture(scope="module")
def propagate():
    return jax.jit(propagated, static_argnums=(2, 3))


def random_shares(rng, *shape):
    return rng.dirichlet(np.ones(shape[0]), shape[1:]).transpose(2, 0, 1).astype(np.float32)


def tree_factors(rng, tree, n, shape):
    factor = np.ones((4, n, n, *shape), np.float32)
    for k, here, _ in tree:
        factor[k, :, :, *here] = np.exp(rng.normal(0, 1.5, (n, n)))
    return factor


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), damped=st.booleans())
def test_beliefs_on_a_tree_are_exact(propagate, seed, damped):
    """After as many rounds as the longest way has steps."""
    rng, shape, n = np.random.default_rng(seed), (2, 4), 3
    share = random_shares(rng, n, *shape)
    factor = tree_factors(rng, random_tree(rng, shape), n, shape)
    belief, _ = propagate(share, factor, *((60, 0.5) if damped else (7, 0.0)))
    probability, labels = joint_probability(share, factor)
    expected = [(probability[:, None, None] * (labels == label)).sum(axis=0) for label in range(n)]
    np.testing.assert_allclose(belief, expected, rtol=1e-3, atol=1e-5)


def test_without_neighbours_each_believes_its_pattern(propagate, rng):
    share = random_shares(rng, 3, 2, 4)
    belief, _ = propagate(share, np.ones((4, 3, 3, 2, 4), np.float32), 7, 0.0)
    np.testing.assert_allclose(belief, share, rtol=1e-5)


def test_messages_go_one_position_a_round(rng):
    shape, rounds = (7, 8), 2
    share = random_shares(rng, 2, *shape)
    factor = tree_factors(rng, pairs_of(shape), 2, shape)
    other = share.copy()
    other[:, 3, 4] = share[::-1, 3, 4]
    spread_out = jax.jit(partial(propagated, rounds=rounds, damping=0.5))
    one, two = (np.asarray(spread_out(x, factor)[0]) for x in (share, other))
    rows, columns = np.mgrid[:7, :8]
    near = np.maximum(abs(rows - 3), abs(columns - 4)) <= rounds
    np.testing.assert_array_equal((one != two).any(axis=0), near)


def factors_by_hand(square, known, coupling, diagonal):
    """What `compatibility` should be, one pair of labels after the other."""
    n, shape = square.shape[1], known.shape
    factor = np.ones((4, n + 1, n + 1, *shape))
    for k, here, there in pairs_of(shape):
        weight = diagonal if all(STEPS[k]) else 1.0
        if known[here] and known[there]:
            alike = np.exp(-square[k, :, :, *here] / (2 * coupling.spread**2))
            factor[k, :n, :n, *here] = 1 + (np.exp(weight * coupling.same) - 1) * alike
            factor[k, n, n, *here] = np.exp(weight * coupling.nothing)
    return factor


def random_squares(rng, n, shape):
    """Squared angles [rad²] of which a third is infinite; so are all at the edges."""
    square = np.full((4, n, n, *shape), np.inf)
    for k, here, _ in pairs_of(shape):
        values = rng.uniform(0, 0.15, (n, n)) ** 2
        square[k, :, :, *here] = np.where(rng.random((n, n)) < 0.3, np.inf, values)
    return square


def test_factors_are_those_of_the_model(rng):
    square, known = random_squares(rng, 2, (3, 4)), rng.random((3, 4)) < 0.8
    coupling = jax.tree.map(float, COUPLING)
    expected = factors_by_hand(square, known, coupling, DIAGONAL)
    given = jnp.asarray(square, jnp.float32), jnp.asarray(known)
    found = compatibility(*given, COUPLING, DIAGONAL)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert expected.max() <= np.exp(coupling.same)


@partial(jax.jit, static_argnums=4)
def weighed(share, square, known, counted, diagonal):
    factor = compatibility(square, known, COUPLING, diagonal)
    belief, messages = propagated(share, factor, 6, 0.0)
    sums = pair_sums(factor, belief, messages, square, known, counted, COUPLING, diagonal)
    return belief, sums


@pytest.mark.parametrize("shape", [(1, 7), (7, 1)])
def test_pairs_of_a_chain_are_counted_by_their_beliefs(shape, rng):
    """One position is not known, and pairs count that begin at some of the others."""
    n = 2
    square, share = random_squares(rng, n, shape), random_shares(rng, n + 1, *shape)
    known, counted = np.arange(7).reshape(shape) != 4, rng.random(shape) < 0.7
    counted.flat[:2] = True, False
    coupling = jax.tree.map(float, COUPLING)
    factor = factors_by_hand(square, known, coupling, DIAGONAL)
    probability, labels = joint_probability(share, factor)
    belief, found = weighed(share, square.astype(np.float32), known, counted, DIAGONAL)
    marginal = [(probability[:, None, None] * (labels == i)).sum(axis=0) for i in range(n + 1)]
    np.testing.assert_allclose(belief, marginal, rtol=1e-3, atol=1e-6)
    expected = np.zeros(5)
    for k, here, there in pairs_of(shape):
        if not (counted[here] and known[here] and known[there]):
            continue
        for i, j in product(range(n + 1), repeat=2):
            p = probability[(labels[:, *here] == i) & (labels[:, *there] == j)].sum()
            expected[3] += p * (n in (i, j))
            expected[4] += p * (i == j == n)
            if n in (i, j):
                continue
            angle = square[k, i, j, *here]
            # of one grain with the odds by which that raises the factor
            alike = np.exp(-angle / (2 * coupling.spread**2))
            of_one = p * np.exp(coupling.same) * alike / factor[k, i, j, *here]
            expected[:3] += p, of_one, of_one * angle if of_one else 0.0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_alike_turns_count_and_others_do_not(squares, turns, quaternions):
    """A turn by 60° about c is the hexagonal crystal again, and another cubic one."""
    start = Rotation.from_rotvec([0.3, -0.8, 0.2])
    turned = Rotation.from_matrix(turn_deg([0, 0, 60])) * start
    a, b = (components_first(quaternions(x, 1, 1)) for x in (start, turned))
    of_phase = lambda p: squares(a, b, *2 * [np.full((1, 1), p)], turns).item()  # noqa: E731
    cubic, hexagonal = of_phase(0), of_phase(1)
    assert hexagonal < 1e-5 and cubic == pytest.approx(4 * np.sin(np.deg2rad(15)) ** 2, rel=1e-4)
