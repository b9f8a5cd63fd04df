# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a calibration comes out of the scan's own disks, and nothing else does."""

import re
import warnings
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import random_matrices, scan_of_lists
from scipy.spatial.transform import Rotation

from jaxstem.diffraction.geometry import excitation_error
from jaxstem.files.distortion import from_numbers
from jaxstem.files.scan import Instrument, source_of
from jaxstem.inference.batching import unseen
from jaxstem.inference.config import InferConfig
from jaxstem.runtime import parallel
from jaxstem.scan import self_calibration
from jaxstem.scan.premises import examined
from jaxstem.scan.self_calibration import (
    DISKS,
    ENOUGH,
    LARGEST,
    LEAST_PAIRS,
    Offsets,
    beam_drift,
    explained_share,
    fitted,
    grains_of,
    learned_distortion,
    looker,
    make_pair,
    spread_over,
    standard_errors,
    to_correct,
)
from jaxstem.verification.config import THOROUGH, LikelihoodConfig, ScoreConfig

pytestmark = pytest.mark.usefixtures("quick_compile", "compiled_once")

WRONG = np.array([0.018, -0.006, 0.011, 0.012, -0.02])
"""Stretch xx, xy, yy, shift x, y [1/Å]."""


UNKNOWN = Instrument()


def displaced(q, numbers):
    found = from_numbers(np.asarray(numbers, float))
    return q @ (np.eye(2) + found.stretch) + found.shift


def offsets(rng, numbers, n=60, k=12, scatter=0.0, turned=0.5, of_grain=None):
    """Disks of patterns that are each turned about the beam by up to `turned` degrees; `of_grain`:
    distortions of their own (n, 5).
    """
    place = rng.uniform(-1.8, 1.8, (n, k, 2))
    angle = np.deg2rad(rng.uniform(-turned, turned, n))
    turn = np.stack([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    q = np.einsum("pki,ijp->pkj", place, turn)
    q = displaced(q, numbers) if of_grain is None else np.stack(list(map(displaced, q, of_grain)))
    dx, dy = np.moveaxis(q + rng.normal(size=q.shape) * scatter - place, -1, 0)
    every = np.ones((n, k), bool)
    return Offsets(place[..., 0], place[..., 1], dx, dy, every, every)


def test_a_planted_fault_is_found_whatever_the_turns(rng):
    found, _, scatter = fitted(offsets(rng, WRONG, scatter=0.003), np.arange(60))
    np.testing.assert_allclose(found.numbers, WRONG, atol=1e-3)
    assert scatter == pytest.approx(0.003, rel=0.15)


def test_false_disks_and_those_of_no_reflection_hardly_matter(rng):
    given = offsets(rng, WRONG, scatter=0.003)
    wrong, alone = rng.random((2, 60, 12)) < 0.1
    far = rng.uniform(-0.06, 0.06, (2, 60, 12))
    given = given._replace(
        dx=np.where(wrong, far[0], np.where(alone, 1e3, given.dx)),
        dy=np.where(wrong, far[1], np.where(alone, -1e3, given.dy)),
        paired=~alone,
    )
    found, _, _ = fitted(given, np.arange(60))
    np.testing.assert_allclose(found.numbers, WRONG, atol=2e-3)


def test_errors_are_those_of_grains_that_err_as_a_whole(rng):
    """Many scans, in each of which grains are stretched by one per cent at random: the true numbers
    lie as far from the fits as the standard errors say, however many patterns a grain has.
    """
    deviations = []
    for _ in range(150):
        size = rng.integers(1, 9, 14)
        grain = np.repeat(np.arange(14), size)
        own = (WRONG + rng.normal(size=(14, 5)) * 0.01)[grain]
        found, covariance, _ = fitted(
            offsets(rng, WRONG, len(grain), 8, 0.003, 0.2, own), rng.permutation(14)[grain]
        )
        deviations.append((found.numbers - WRONG) / np.sqrt(np.diag(covariance)))
    # a standard deviation from 150 values is known to 6 %, and few grains have heavier tails
    assert ((np.std(deviations, axis=0) > 0.8) & (np.std(deviations, axis=0) < 1.45)).all()


def test_a_grain_counts_once(rng):
    """Its patterns again and again change nothing."""
    given = offsets(rng, WRONG, 20, scatter=0.004)
    again = np.concatenate([np.arange(20), np.full(15, 7)])
    more = Offsets(*(x[again] for x in given))
    few, covariance, _ = fitted(given, np.arange(20))
    many, covariance_again, _ = fitted(more, again)
    np.testing.assert_allclose(many.numbers, few.numbers, atol=1e-3)
    np.testing.assert_allclose(covariance_again, covariance, rtol=0.4, atol=1e-8)


def test_only_what_is_sure_is_corrected():
    covariance = np.diag([1.0, 0.5, 1.0, 0.5, 0.5]) * 1e-6
    all_of_it = to_correct(from_numbers(WRONG), covariance, True)
    np.testing.assert_allclose(all_of_it.numbers, WRONG, atol=1e-12)
    kept = to_correct(from_numbers(WRONG), covariance, False)
    assert kept.scale == pytest.approx(1.0) and kept.ellipse == all_of_it.ellipse
    np.testing.assert_array_equal(kept.shift, all_of_it.shift)
    assert to_correct(from_numbers(WRONG), 1e4 * covariance, True).most == 0.0
    too_far = from_numbers(np.array([1.05 * LARGEST, 0, 1.05 * LARGEST, 0.02, 0]))
    assert to_correct(too_far, covariance, True).parts[0].most == 0.0
    assert to_correct(too_far, covariance, True).shift[0] == 0.02
    small = from_numbers(np.array([1e-3, 0, 1e-3, 5e-4, 0]))
    assert to_correct(small, 1e-4 * covariance, True).most == 0.0
    ellipse_alone = from_numbers(np.array([0.01, 0, -0.01, 1e-4, 0]))
    found = to_correct(ellipse_alone, covariance, True)
    assert found.ellipse[0] == pytest.approx(0.02) and found.shift[0] == 0.0


def test_standard_errors_are_of_scale_ellipse_and_shift(rng):
    """As numbers drawn with that covariance scatter."""
    root = rng.normal(size=(5, 5)) * 0.01
    drawn = [from_numbers(numbers) for numbers in rng.normal(size=(4000, 5)) @ root.T]
    scale = np.std([x.scale for x in drawn])
    ellipse = [(0.5 * (x.stretch[0, 0] - x.stretch[1, 1]), x.stretch[0, 1]) for x in drawn]
    shift = [x.shift for x in drawn]
    of_two = [np.sqrt(np.var(x, axis=0).mean()) for x in (ellipse, shift)]
    np.testing.assert_allclose(standard_errors(root @ root.T), [scale, *of_two], rtol=0.08)


@pytest.mark.parametrize("shape", [(64, 64), (7, 300), (16, 16), (1, 5), (40, 17)])
def test_a_sample_is_spread_over_the_scan(shape):
    scan = scan_of_lists([np.array([[0.1, 0.2, i]]) for i in range(np.prod(shape))], shape)
    few = spread_over(source_of(scan)).whole()
    rows, columns = np.divmod(few.intensity.astype(int), shape[1])
    for places, n, most in zip((rows, columns), shape, self_calibration.SAMPLE, strict=True):
        places = np.unique(places)
        assert len(places) == min(n, most)
        assert max(places[0], n - 1 - places[-1]) < 2 * max(1, n // most)


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(jax.devices()[:1])


@pytest.fixture
def crystals_seen(model, rng, monkeypatch):
    """A scan of 6 × 8 positions, of 24 grains that bend, and its orientations."""
    monkeypatch.setattr(self_calibration, "SAMPLE", (6, 8))
    material = model.materials[0]
    grains = np.repeat(random_matrices(rng, 24, np.float64), 2, axis=0)
    bent = Rotation.from_rotvec(np.deg2rad(rng.normal(size=(48, 3)) * 0.2)).as_matrix()
    orientation = (grains @ bent).astype(np.float32)
    lists = []
    g, _, inverse_extinction = map(np.asarray, material.reflectors())
    for one in orientation:
        g_lab = g @ one
        s = np.asarray(excitation_error(g_lab, material.wavelength))
        share = 0.5 * inverse_extinction**2 / (s**2 + inverse_extinction**2)
        kept = share > 1e-3
        measured = np.column_stack([g_lab[kept, :2], share[kept]])
        lists.append(np.concatenate([measured, [[0.0, 0.0, 1.0]]]))
    return scan_of_lists(lists, (6, 8)), orientation


@pytest.fixture
def learnt(model, mesh, crystals_seen, monkeypatch):
    """What is learned of the scan, displaced and with this instrument, by one who knows all its
    orientations, turned by a random half degree: the scan as corrected, the distortion, the line.
    """
    true, orientation = crystals_seen
    answer = unseen(np.zeros(len(orientation), bool))
    answer = answer._replace(
        orientation=orientation,
        phase=np.zeros(len(orientation), np.int16),
        confidence_mod180=np.ones(len(orientation), np.float32),
    )
    monkeypatch.setattr(self_calibration, "predict_scan", lambda *_, **__: (answer, None))

    def learn(numbers, instrument=UNKNOWN, drift=None):
        q = displaced(np.stack([true.qx, true.qy], axis=1), numbers)
        n = np.diff(true.offsets)
        if drift is None:  # no direct beam among the disks
            strength = np.where(np.hypot(true.qx, true.qy) < 0.1, 0.0, true.intensity)
        else:
            strength, q = true.intensity, q + np.repeat(drift, n, axis=0)
        scan = replace(true, qx=np.float32(q[:, 0]), qy=np.float32(q[:, 1]), intensity=strength)
        scan = replace(scan, instrument=instrument)
        found = examined(source_of(scan), model, InferConfig(), mesh, lambda _: None)
        assert (found.doubt is None) or numbers is not WRONG
        return found.source.whole(), found.distortion, found.geometry

    return learn


def learn(source, model, config, mesh):
    look = looker(source, model, config, mesh, lambda _: None)
    return learned_distortion(source, model, look, from_numbers(np.zeros(5)))


def test_the_scan_is_put_right(learnt, crystals_seen):
    true, _ = crystals_seen
    found, distortion, line = learnt(WRONG)
    np.testing.assert_allclose(distortion.numbers, WRONG, atol=1e-3)
    for mine, given in ((found.qx, true.qx), (found.qy, true.qy)):
        np.testing.assert_allclose(mine, given, atol=4e-3)
    assert "+1.45 ±" in line and line.count("(corrected)") == 3
    # some have too few disks, and two may be alike
    assert 8 <= int(re.search(r"by (\d+) grains$", line)[1]) <= 24


def test_what_is_right_stays_as_it_is(learnt, crystals_seen):
    true, _ = crystals_seen
    found, distortion, line = learnt(np.zeros(5))
    assert distortion.most == 0.0 and "corrected" not in line
    np.testing.assert_array_equal(found.qx, true.qx)


def test_a_listed_beam_says_where_the_centre_is(learnt, crystals_seen, rng):
    """Of each position; what it leaves the other disks say."""
    true, _ = crystals_seen
    row, column = np.divmod(np.arange(48), 8)
    drift = np.stack([0.004 * row - 0.02, 0.003 * column], axis=-1)
    found, distortion, line = learnt(WRONG, drift=drift)
    assert line.count("(corrected)") == 3 and line.startswith("beam drifts by 0.0")
    assert np.abs(distortion.shift).max() < 2e-3  # the beam has told
    seen = distortion.drift_at(np.arange(6), np.arange(8), (6, 8)).reshape(-1, 2)
    np.testing.assert_allclose(seen, drift + WRONG[3:], atol=2e-3)
    for mine, given in ((found.qx, true.qx), (found.qy, true.qy)):
        np.testing.assert_allclose(mine, given, atol=4e-3)
    _, distortion, line = learnt(np.zeros(5), drift=rng.normal(size=(48, 2)) * 1e-3)
    assert distortion.most == 0.0 and "beam off" not in line


def test_a_beam_that_is_told_twice_or_seldom(rng, monkeypatch):
    """The strongest disk near the centre is it; one that is not listed says nothing; of a large
    scan some positions do.
    """
    shape = (40, 30)
    row, column = np.divmod(np.arange(1200), 30)
    drift = np.stack([0.02 * np.sin(row / 15), 0.02 * np.cos(column / 12)], axis=-1)
    noisy = drift + rng.normal(size=drift.shape) * 1e-3
    lists = [np.array([[*q, 5.0], [-0.1, 0.02, 1.0], [0.5, 0.1, 9.0]]) for q in noisy]
    scan = scan_of_lists(lists, shape)
    found = beam_drift(source_of(scan), 0.15)
    assert found.shape == (*shape, 2)
    assert np.abs(found.reshape(-1, 2) - drift).max() < 3e-3
    monkeypatch.setattr(self_calibration, "DRIFT", (20, 15))
    few = beam_drift(source_of(scan), 0.15)
    assert few.shape == (20, 15, 2)
    over_all = from_numbers(np.zeros(5))._replace(drift=few)
    over_all = over_all.drift_at(np.arange(40), np.arange(30), shape)
    inside = over_all[1:-1, 1:-1] - drift.reshape(*shape, 2)[1:-1, 1:-1]
    assert np.abs(inside).max() < 4e-3
    without = [x if rng.random() < 0.3 else x[2:] for x in lists]
    assert beam_drift(source_of(scan_of_lists(without, shape)), 0.15) is None


def test_a_scale_that_was_given_is_kept(learnt):
    _, distortion, line = learnt(WRONG, Instrument(0.03, pixel_size_from="as given"))
    assert distortion.scale == pytest.approx(1.0)
    np.testing.assert_allclose(distortion.shift, WRONG[3:], atol=1e-3)
    assert "+1.45 ±" in line and line.count("(corrected)") == 2


def test_a_scale_too_far_off_is_said_and_kept(learnt):
    with pytest.warns(UserWarning, match=r"disks lie 3\.[45] % farther from the beam"):
        _, distortion, _ = learnt([0.035, 0, 0.035, 0, 0])
    assert distortion.scale == pytest.approx(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learnt([0.015, 0, 0.015, 0, 0])


def test_few_grains_say_nothing(model, mesh, learnt, monkeypatch):
    monkeypatch.setattr(self_calibration, "ENOUGH", 25)
    found, distortion, line = learnt(WRONG)
    assert distortion.most == 0.0 and line == "as given, for too few grains tell it"
    tiny = scan_of_lists([np.array([[0.5, 0.0, 1.0]])] * (ENOUGH - 1))
    nothing = unseen(np.zeros(ENOUGH - 1, bool))
    monkeypatch.setattr(self_calibration, "predict_scan", lambda *_, **__: (nothing, None))
    same = examined(source_of(tiny), model, InferConfig(), mesh)
    np.testing.assert_array_equal(same.source.whole().qx, tiny.qx)


def test_bloch_waves_are_not_asked(model, mesh, crystals_seen, monkeypatch):
    """They move no disk; the probe and the thicknesses are those given."""
    asked = []

    def predict(model, source, config, **_):
        asked.append(config)
        return unseen(np.zeros(48, bool)), None

    monkeypatch.setattr(self_calibration, "predict_scan", predict)
    statistics = LikelihoodConfig(semi_angle=4.0, thickness=(50.0, 90.0))
    config = InferConfig(refine="full", score=replace(THOROUGH, likelihood=statistics))
    scan = source_of(crystals_seen[0])
    assert learn(scan, model, config, mesh) is None
    (used,) = asked
    usual = replace(LikelihoodConfig(), semi_angle=4.0, thickness=(50.0, 90.0))
    assert (used.refine, used.score) == ("fast", replace(ScoreConfig(), likelihood=usual))


def test_doubtful_answers_are_left_out(model, mesh, crystals_seen, monkeypatch):
    """Disks of all answers are paired; from those that are believed the calibration is learned."""
    scan, orientation = crystals_seen
    answer = unseen(np.zeros(48, bool))
    confidence = np.where(np.arange(48) % 3, 0.9, 0.1).astype(np.float32)
    confidence[4] = np.nan  # not known: taken for right
    phase = np.where(np.arange(48) == 7, -1, 0).astype(np.int16)
    answer = answer._replace(orientation=orientation, phase=phase, confidence_mod180=confidence)
    found = make_pair(model, InferConfig(), mesh)(source_of(scan), answer)
    np.testing.assert_array_equal(found.paired.any(axis=1), phase >= 0)
    n_disks = np.diff(scan.offsets) - 1  # without the direct beam
    np.testing.assert_array_equal(found.present.sum(axis=1), np.minimum(n_disks, DISKS))
    share = found.paired.sum(axis=1)[phase >= 0] / n_disks[phase >= 0]
    assert share.min() > 0.7
    assert explained_share(found) == pytest.approx(found.paired.sum() / found.present.sum())
    distance = np.hypot(found.dx, found.dy)[found.paired]
    assert np.median(distance) < 2e-3
    taken = []

    def fitting(offsets, grain):
        taken.append(len(grain))
        return fitted(offsets, grain)

    monkeypatch.setattr(self_calibration, "predict_scan", lambda *_, **__: (answer, None))
    monkeypatch.setattr(self_calibration, "fitted", fitting)
    assert learn(source_of(scan), model, InferConfig(), mesh)
    is_used = ((np.arange(48) % 3 > 0) | (np.arange(48) == 4)) & (phase >= 0)
    assert taken[0] == (is_used & (found.paired.sum(axis=1) >= LEAST_PAIRS)).sum()


def test_grains_are_chains_of_those_alike(model, rng):
    """Numbered alike modulo 180° about the beam and symmetry, and apart across crystals."""
    start = random_matrices(rng, 2, np.float64)
    steps = [Rotation.from_rotvec(np.deg2rad([2.0 * i, 0, 0])).as_matrix() for i in range(4)]
    chain = np.stack([start[0] @ step for step in steps])
    chain[2] = model.materials[0].operations[5] @ chain[2] @ np.diag([-1, -1, 1])
    orientation = np.concatenate([chain, start[1:]]).astype(np.float32)
    two = replace(model, materials=model.materials * 2)
    for phase, expected in (
        (np.zeros(5, int), [0, 0, 0, 0, 1]),
        (np.array([0, 0, 1, 0, 0]), [0, 0, 1, 2, 3]),
    ):
        grain = grains_of(orientation, phase, two)
        _, first, number = np.unique(grain, return_index=True, return_inverse=True)
        np.testing.assert_array_equal(np.argsort(np.argsort(first))[number], expected)
