# SPDX-License-Identifier: GPL-3.0-or-later
"""Proposals and summits, by loops over positions and scipy's angles."""

from itertools import product

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.special import softmax

from jaxstem.scan.proposals import NEW, SURE, different, propose

pytestmark = pytest.mark.usefixtures("quick_compile")

SHAPE, MOST = (5, 6), 3
AROUND = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


@pytest.fixture(scope="module")
def proposals():
    return jax.jit(propose, static_argnums=2)


@pytest.fixture(scope="module")
def some_labels(apart, quaternions, make_labels):
    """Three labels of each position, out of few orientations of two phases that lie apart, turned
    at random by `spread` degrees. Three positions are sure of the first, two were not looked at,
    and two have no crystal.
    """

    def some_labels(rng, spread, n=(3, 2), none=(0, 8), empty=(4, 17)):
        pool = [apart(rng, number, phase=p) for p, number in enumerate(n)]
        which = np.stack([rng.permutation(sum(n))[:3] for _ in range(np.prod(SHAPE))])
        phase = (which >= n[0]).astype(int)
        small = np.deg2rad(spread) * rng.uniform(-1, 1, (*which.shape, 3)) / np.sqrt(3)
        rotation = [
            pool[p][k - p * n[0]] for k, p in zip(which.ravel(), phase.ravel(), strict=True)
        ]
        rotation = Rotation.concatenate(rotation) * Rotation.from_rotvec(small.reshape(-1, 3))
        odds = -np.sort(-rng.normal(0, 2, which.shape), axis=1)
        odds[[11, 18, 25], 0] += 20
        odds[which.shape[0] // 2 :, 2] = -np.inf  # of these positions there are two labels
        odds[[*none, *empty]] = -np.inf
        no_crystal = rng.normal(-2, 2, len(which))
        no_crystal[[*none]], no_crystal[[*empty]] = np.nan, 0.0
        return make_labels(
            quaternions(rotation, *SHAPE, 3),
            odds.reshape(*SHAPE, 3),
            no_crystal.reshape(SHAPE),
            phase.reshape(*SHAPE, 3),
        )

    return some_labels


def neighbours_of(row, column):
    for down, right in AROUND:
        there = row + down, column + right
        if 0 <= there[0] < SHAPE[0] and 0 <= there[1] < SHAPE[1]:
            yield there


def test_proposals_are_what_neighbours_are_the_surest_of(proposals, some_labels, turns, angle, rng):
    """First labels of neighbours that the position itself lacks, by the probabilities of all that
    agree; each such orientation once, and none where the position is sure of itself.
    """
    labels, alike = some_labels(rng, 1.0), np.deg2rad(NEW)
    sure = softmax(np.concatenate([labels.log_odds, labels.no_crystal[..., None]], -1), axis=-1)
    found = jax.tree.map(np.asarray, proposals(labels, turns, MOST))

    def near(one, other):
        (a, its), (b, others) = one, other
        return angle(a, b, np.asarray(its), np.asarray(others)) < alike

    def label(place, i=0):
        return labels.quaternion[(*place, i)], labels.phase[(*place, i)]

    n_found = 0
    for place in np.ndindex(SHAPE):
        around = [x for x in neighbours_of(*place) if labels.phase[(*x, 0)] >= 0]
        new = []
        if labels.phase[(*place, 0)] >= 0 and sure[(*place, 0)] < SURE:
            own = [label(place, i) for i in range(3)]
            new = [x for x in around if not any(near(label(x), y) for y in own)]
        support = {x: sum(sure[(*y, 0)] for y in around if near(label(x), label(y))) for x in new}
        expected = []
        for x in sorted(new, key=lambda x: -support[x]):
            if all(not near(label(x), label(y)) for y in expected):
                expected.append(x)
        # the support is the same of all that agree: any of them stands for the others
        n = min(len(expected), MOST)
        n_found += n
        np.testing.assert_array_equal(found.phase[place] >= 0, np.arange(MOST) < n)
        for i, x in enumerate(expected[:n]):
            proposal = found.quaternion[(*place, i)], found.phase[(*place, i)]
            same = [y for y in new if np.array_equal(proposal[0], label(y)[0])]
            assert same and near(proposal, label(same[0]))
            # in single precision those of nearly the same support may change places
            assert abs(support[same[0]] - support[x]) < 1e-5
    assert n_found > 20 and np.sum(sure[..., 0] > SURE) >= 3


def test_proposals_lie_apart(proposals, some_labels, turns, angle, rng):
    """Also where neighbours are neither alike nor different."""
    labels = some_labels(rng, 4.0, n=(2, 1))
    found = jax.tree.map(np.asarray, proposals(labels, turns, MOST))
    least, number = np.deg2rad(NEW) - 2e-3, 0
    for place in np.ndindex(SHAPE):
        given = [i for i in range(MOST) if found.phase[(*place, i)] >= 0]
        number += len(given)
        q, phase = found.quaternion[place][given], found.phase[place][given]
        own = angle(q[:, None], labels.quaternion[place], phase[:, None], labels.phase[place])
        assert own.size == 0 or own.min() > least
        between = angle(q[:, None], q, phase[:, None], phase)
        assert (between[~np.eye(len(given), dtype=bool)] > least).all()
        firsts = [labels.quaternion[(*x, 0)] for x in neighbours_of(*place)]
        assert all(any(np.array_equal(one, x) for x in firsts) for one in q)
    assert number > 5


def test_positions_that_are_sure_or_not_looked_at_are_asked_nothing(
    proposals, some_labels, turns, rng
):
    labels = some_labels(rng, 1.0)
    found = proposals(labels, turns, MOST)
    looked_at = (labels.phase >= 0).any(axis=2)
    assert (np.asarray(found.phase)[~looked_at] == -1).all() and (~looked_at).sum() == 4
    assert (np.asarray(found.phase).reshape(-1, MOST)[[11, 18, 25]] == -1).all()
    assert (np.asarray(found.phase)[looked_at] >= 0).any()


def test_one_label_of_each_summit_stays(apart, quaternions, make_labels, turns, angle, rng):
    """The likeliest of those within a degree, whatever their order; rotations that lie apart, and
    the same ones of another phase, stay.
    """
    n, shape = 6, (3, 4)
    places, which = apart(rng, 2), rng.integers(0, 2, (*shape, n))
    small = np.deg2rad(0.5) * rng.uniform(-1, 1, (which.size, 3)) / np.sqrt(3)
    q = quaternions(places[which.ravel()] * Rotation.from_rotvec(small), *shape, n)
    phase = rng.integers(0, 2, which.shape)
    odds = rng.normal(0, 3, which.shape)
    odds[rng.random(which.shape) < 0.2] = -np.inf
    labels = make_labels(q, odds, -1.0, phase)
    found = jax.tree.map(np.asarray, jax.jit(different)(labels, turns))
    expected = np.zeros(which.shape, bool)
    for place in np.ndindex(shape):
        exists = np.isfinite(odds[place])
        for summit in product(range(2), repeat=2):
            climbed = exists & (which[place] == summit[0]) & (phase[place] == summit[1])
            if climbed.any():
                expected[(*place, np.argmax(np.where(climbed, odds[place], -np.inf)))] = True
    np.testing.assert_array_equal(found.phase, np.where(expected, phase, -1))
    np.testing.assert_array_equal(found.log_odds, np.where(expected, labels.log_odds, -np.inf))
    for name in ("quaternion", "no_crystal", "score", "explained_light"):
        np.testing.assert_array_equal(getattr(found, name), getattr(labels, name))
    between = angle(q[..., :, None, :], q[..., None, :, :], phase[..., None], phase[..., None, :])
    assert np.isinf(between).any() and (between[np.isfinite(between)] > 0.02).any()
