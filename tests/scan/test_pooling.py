# SPDX-License-Identifier: GPL-3.0-or-later
"""Which patterns of a scan are added up, and how many."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import scan_of_lists
from scipy.spatial.transform import Rotation

from jaxstem.files.light import Detector
from jaxstem.files.scan import source_of
from jaxstem.inference.batching import unseen
from jaxstem.inference.config import InferConfig
from jaxstem.runtime import parallel
from jaxstem.scan import pooling
from jaxstem.scan.pooling import (
    BELIEVED,
    MOST,
    OF_ONE_GRAIN,
    OUTSIDE,
    RADIUS,
    SEEN,
    WORTHWHILE,
    as_labels,
    blind,
    chosen_of,
    members,
    of_one_grain,
    patterns_needed,
    window,
    with_belief,
)
from jaxstem.scan.tiles import tiled

pytestmark = pytest.mark.usefixtures("quick_compile", "compiled_once")

SIDE = 2 * RADIUS + 1


def test_the_window_has_the_nearest_first():
    steps = window(2)
    assert steps[0] == (0, 0) and set(steps[1:5]) == {(0, 1), (1, 0), (0, -1), (-1, 0)}
    assert len(set(steps)) == 25 and np.all(np.diff(np.hypot(*np.transpose(steps))) >= 0)


def expected_members(q, phase, most, angle):
    """The same by scipy, a position at a time."""
    shape = phase.shape
    chosen = np.zeros((SIDE, SIDE, *shape), bool)
    for row, column in np.ndindex(shape):
        count = 0
        for y, x in window(RADIUS):
            a, b = row + y, column + x
            inside = 0 <= a < shape[0] and 0 <= b < shape[1] and phase[a, b] != OUTSIDE
            if not (y == x == 0) and not inside:
                continue
            own, theirs = phase[row, column], phase[a, b]
            near = np.rad2deg(angle(q[row, column], q[a, b], own, theirs)) < OF_ONE_GRAIN
            if (y == x == 0 or near or (own < 0 and theirs == own)) and count < most:
                chosen[y + RADIUS, x + RADIUS, row, column] = True
                count += 1
    return chosen


@pytest.mark.parametrize("most", [1, 6, MOST])
def test_patterns_of_one_grain_are_added_up(most, rng, symmetry, quaternions, turns, apart, angle):
    """Not those of another grain, another phase, or without an answer; nor any beyond the edge."""
    shape = (6, 7)
    which, phase = rng.integers(0, 2, shape), rng.integers(0, 2, shape)
    phase[rng.random(shape) < 0.2] = -1
    phase[rng.random(shape) < 0.2] = -2
    phase[:, -1] = OUTSIDE
    grains = [apart(rng, 2, 15.0, number) for number in (0, 1)]
    small = Rotation.from_rotvec(np.deg2rad(0.05) * rng.normal(size=(*shape, 3)).reshape(-1, 3))
    small = small.as_quat().reshape(*shape, 4)
    q = np.empty((*shape, 4), np.float32)
    for place in np.ndindex(shape):
        number = max(phase[place], 0)
        turned = symmetry[number][rng.integers(len(symmetry[number]))]
        q[place] = quaternions(
            turned * grains[number][which[place]] * Rotation.from_quat(small[place])
        )
    found = jax.jit(of_one_grain)(np.moveaxis(q, -1, 0), phase, turns, np.int32(most))
    expected = expected_members(q, phase, most, angle)
    known = phase != OUTSIDE
    np.testing.assert_array_equal(np.asarray(found)[..., known], expected[..., known])
    assert np.asarray(found)[RADIUS, RADIUS].all()
    assert np.asarray(found).sum(axis=(0, 1)).max() <= most


@pytest.fixture
def answer(rng):
    """Answers (11, 8), a grain on each side; one position has none."""
    turn = Rotation.random(2, random_state=rng.integers(2**31)).as_matrix().astype(np.float32)
    found = jax.tree.map(lambda x: x.reshape(11, 8, *x.shape[1:]), unseen(np.zeros(88, bool)))
    phase = np.zeros((11, 8), int)
    phase[5, 2] = -1
    orientation = turn[(np.arange(8) > 3).astype(int)][None].repeat(11, axis=0)
    orientation[5, 2] = np.nan
    sure = rng.uniform(0.2, 0.9, (11, 8)).astype(np.float32)
    return found._replace(orientation=orientation, phase=phase, confidence=sure)


def test_members_do_not_depend_on_how_the_scan_is_cut(answer, model, monkeypatch):
    """On one device or eight; and grains do not mix."""
    config, one = InferConfig(), parallel.make_mesh(jax.devices()[:1])
    whole = members(answer, 20, model, config, one)
    assert whole.shape == (11, 8, SIDE, SIDE) and whole[:, :, RADIUS, RADIUS].all()
    assert whole.sum(axis=(2, 3)).max() == 20 and whole[5, 2].sum() == 1
    for row, column, y, x in np.argwhere(whole):
        a, b = row + y - RADIUS, column + x - RADIUS
        assert 0 <= a < 11 and 0 <= b < 8 and (b > 3) == (column > 3)
    monkeypatch.setattr(pooling, "tiled", functools.partial(tiled, sides=(9,)))
    np.testing.assert_array_equal(members(answer, 20, model, config, parallel.make_mesh()), whole)


def test_beliefs_of_sums(answer, rng):
    """The first of what was proposed gains, by no more than is believed of it; the rest stays."""
    found = as_labels(answer)
    assert found.phase.shape == (11, 8, 1) and found.phase[5, 2, 0] == -1
    assert np.isneginf(found.log_odds[5, 2, 0]) and not np.isnan(found.no_crystal).any()
    share = 1 / (1 + np.exp(-found.log_odds[..., 0]))
    there = answer.phase >= 0
    np.testing.assert_allclose(share[there], answer.confidence[there], atol=1e-5)
    odds = rng.normal(size=(11, 8, 3)).astype(np.float32)
    odds[0, 0] = -np.inf
    looks = found._replace(log_odds=odds)
    believed = with_belief(looks, found).log_odds
    np.testing.assert_array_equal(believed[..., 1:], odds[..., 1:])
    gained = (believed[1:] - odds[1:])[..., 0]
    assert np.isneginf(believed[0, 0]).all() and gained.min() >= 0 and gained.max() <= BELIEVED[1]
    expected = np.clip(BELIEVED[0] * found.log_odds[..., 0], 0, BELIEVED[1])[1:]
    np.testing.assert_allclose(gained, expected, atol=1e-5)
    # a pattern that was not looked at takes the labels of its sum
    unseen = found._replace(phase=np.where(np.arange(8)[:, None] == 3, -1, found.phase))
    theirs = jax.tree.map(lambda x: x + 1, found)
    assert (blind(unseen) == (unseen.phase[..., 0] < 0)).all() and blind(unseen)[:, 3].all()
    taken = chosen_of(blind(unseen), theirs, unseen)
    np.testing.assert_array_equal(taken.log_odds[:, 3], theirs.log_odds[:, 3])
    np.testing.assert_array_equal(taken.no_crystal[:, 3], 1)
    others = np.delete(np.arange(8), 3)
    np.testing.assert_array_equal(taken.log_odds[6:, others], found.log_odds[6:, others])


def test_how_many_patterns_are_needed(model, monkeypatch):
    """The fewer electrons the more, where there is something to be added up and counts judge."""
    source = source_of(scan_of_lists([np.array([[0.0, 0, 10]])] * 4, (2, 2)))
    detector = Detector(*[None] * len(Detector._fields))
    source = replace(source, detector=detector, pooled=lambda *_: source)

    def needed(limit, source=source, **settings):
        limits = SimpleNamespace(log_share=np.log([3 * limit, limit, 2 * limit]))
        known = SimpleNamespace(limit=limits)
        monkeypatch.setattr(pooling, "preview_scan", lambda *_: known)
        return patterns_needed(source, model, InferConfig(**settings))

    assert needed(3.1 * SEEN) == 10 and needed(100 * SEEN) == MOST
    assert needed(SEEN) == needed(0.99 * np.sqrt(WORTHWHILE - 1) * SEEN) == 1
    assert needed(1.01 * np.sqrt(WORTHWHILE - 1) * SEEN) == WORTHWHILE
    assert needed(5 * SEEN, replace(source, pooled=None)) == 1
    assert needed(5 * SEEN, replace(source, detector=None)) == 1
    assert needed(5 * SEEN, refine="none") == needed(5 * SEEN, judge="list") == 1
