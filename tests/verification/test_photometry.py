# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts at predicted places: the formula, what is not seen, and the truth above its half turn."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_matrices, turn_deg
from scipy import stats

from jaxstem.crystal.electron import electron_wavelength
from jaxstem.diffraction.geometry import excitation_error
from jaxstem.diffraction.two_beam import expected_intensity, two_beam_intensity
from jaxstem.files.light import (
    Detector,
    Light,
    encoded,
    encoded_factor,
    light_everywhere,
)
from jaxstem.orientation.rotations import HALF_TURN_ABOUT_BEAM
from jaxstem.verification.config import CountsConfig
from jaxstem.verification.photometry import (
    Places,
    Reflections,
    account,
    climb_by_counts,
    explained_light,
    likeliest_reflections,
    log_ratios,
    log_ratios_of_alike,
    measured,
    over_thickness,
)
from jaxstem.verification.ranking import Forward

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = CountsConfig(n_reflections=40)
WAVELENGTH = float(electron_wavelength(300e3))
SIDE, PIXEL, DISK = 128, 0.0328, 0.076
BEAM, BASE, SEMI_ANGLE, REACH = 1e5, 40.0, 1.5, 2.0
THICKNESS = jnp.linspace(30.0, 300.0, 24)
N_PATTERNS = 24

ratios = jax.jit(lambda places, tilt, t: log_ratios(places, tilt, t, SEMI_ANGLE, CONFIG))
two_beam = jax.jit(two_beam_intensity)


@partial(jax.jit, static_argnames="config")
def reflections_of(orientation, forward, reach=REACH, disk=DISK, config=CONFIG):
    return likeliest_reflections(orientation, forward, WAVELENGTH, reach, disk, config)


@pytest.fixture(scope="module")
def detector():
    seen = np.zeros((SIDE, SIDE), bool)
    seen[3:-3, 3:-3] = True
    return Detector(
        jnp.full(4000, BASE),
        jnp.float32(1 / 16),
        jnp.asarray(seen),
        jnp.eye(2) / PIXEL,
        jnp.float32(4.0),
        jnp.float32(DISK),
        jnp.float32(1.0),
    )


@pytest.fixture(scope="module")
def copper_forward(cu):
    g, strength, _ = cu
    return Forward(g, strength)


@pytest.fixture(scope="module")
def shine(cu):
    """What is kept of a pattern of copper by two-beam theory, at an orientation and thickness."""
    g, strength, _ = cu
    places = jnp.arange(SIDE, dtype=jnp.float32)

    @jax.jit
    def light(orientation, thickness, key):
        g_lab = g @ orientation
        x, y = g_lab[:, 0], g_lab[:, 1]
        s = excitation_error(g_lab, WAVELENGTH)
        share = two_beam_intensity(s, strength, jnp.hypot(x, y), thickness, SEMI_ANGLE)
        share, bright = jax.lax.top_k(jnp.where(jnp.hypot(x, y) < REACH, share, 0.0), 100)
        counts, x, y = BEAM * share, x[bright], y[bright]
        row, column = SIDE / 2 + x / PIXEL, SIDE / 2 + y / PIXEL
        apart = jnp.hypot(places[:, None, None] - row, places[:, None] - column) * PIXEL
        near = jnp.maximum(1 - apart / (2 * DISK), 0.0)
        image = BASE + (counts * near).sum(-1)
        noisy = image + jnp.sqrt(image) * jax.random.normal(key, image.shape)
        return Light(
            encoded(noisy)[::2, ::2], encoded_factor(jnp.ones((32, 32))), jnp.full(2, SIDE / 2.0)
        )

    return light


@pytest.fixture(scope="module")
def judge(copper_forward):
    """(orientation, light, detector) to places, tilt [rad] and ln of the evidence [nat] after the
    climb.
    """

    @jax.jit
    def judged(orientation, light, detector):
        found = reflections_of(orientation, copper_forward)
        sums = light_everywhere(light.sums, detector.seen.shape)
        places = measured(found, sums, light, detector, BEAM, REACH, CONFIG)
        at = climb_by_counts(places, THICKNESS, SEMI_ANGLE, CONFIG)
        return places, at, over_thickness(at.log_ratio)

    return judged


@pytest.fixture(scope="module")
def judge_many(judge):
    """`judge` of `N_PATTERNS` at once."""
    return jax.jit(jax.vmap(judge, in_axes=(0, 0, None)))


@pytest.fixture(scope="module")
def shine_many(shine):
    """Light of so many orientations, of foils of 60 to 200 Å."""
    many = jax.jit(jax.vmap(shine))

    def shine(truth, rng):
        keys = jax.random.split(jax.random.key(int(rng.integers(1 << 30))), N_PATTERNS)
        return many(truth, jnp.asarray(rng.uniform(60, 200, N_PATTERNS), jnp.float32), keys)

    return shine


def places_of(rng, n=16):
    """Places with counts of all kinds, each reflection by itself."""
    numbers = lambda low, high: jnp.asarray(rng.uniform(low, high, n), jnp.float32)  # noqa: E731
    x, y = numbers(-2, 2), numbers(-2, 2)
    excess = jnp.asarray(np.exp(rng.uniform(-1, 9, n)) - 20, jnp.float32)
    variance, floor = jnp.maximum(excess, 0) + 60.0, (CONFIG.floor * BEAM) ** 2
    eps = CONFIG.outliers
    outlier = eps / (1 - eps) / (0.3675 * 9.7) / jnp.maximum(excess, 10.0)
    nothing = 1 / jnp.sqrt(variance) / (1 + excess**2 / variance / 3) ** 2 + outlier
    of = Reflections(
        x, y, jnp.hypot(x, y), numbers(-0.02, 0.02), numbers(0.0005, 0.006), jnp.ones(n)
    )
    return Places(
        of,
        excess,
        variance + floor,
        outlier,
        nothing,
        jnp.ones(n),
        jnp.full(n, BEAM),
    )


def test_ratio_is_that_of_two_mixtures_with_students_tails(rng):
    """Against scipy's densities in double precision, reflection by reflection."""
    places, tilt = places_of(rng), rng.normal(0, 0.003, (3, 2))
    found = ratios(places, np.float32(tilt), THICKNESS)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), places)
    of = p.reflections
    s = of.s + tilt[:, 1:] * of.x - tilt[:, :1] * of.y
    single = lambda x: np.float32(x)[..., None]  # noqa: E731
    shares = two_beam(single(s), single(of.inverse_extinction), single(of.q), THICKNESS, SEMI_ANGLE)
    expected = BEAM * np.asarray(shares, np.float64)
    eps, a = CONFIG.outliers, p.excess[:, None]
    anything = eps / (9.7 * np.maximum(a, 10))
    sigma = np.sqrt(p.variance[:, None] + (CONFIG.scatter * expected) ** 2)
    bare = np.sqrt(p.variance[:, None] - (CONFIG.floor * BEAM) ** 2)
    by_crystal = (1 - eps) * stats.t.pdf((a - expected) / sigma, 3) / sigma + anything
    by_nothing = (1 - eps) * stats.t.pdf(a / bare, 3) / bare + anything
    ratio = np.clip(by_crystal / by_nothing, 1e-4, 1e4)
    np.testing.assert_allclose(found, np.log(ratio).sum(-2), rtol=2e-3, atol=2e-2)


def test_candidates_that_expect_the_same_are_judged_as_each_alone(rng):
    alike = [places_of(rng)]
    alike.append(places_of(rng)._replace(reflections=alike[0].reflections.turned_about_beam()))
    together = jax.jit(lambda x: log_ratios_of_alike(x, THICKNESS, SEMI_ANGLE, CONFIG))(alike)
    still = np.zeros((1, 2), np.float32)
    for found, places in zip(together, alike, strict=True):
        alone = ratios(places, still, THICKNESS)[0]
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-3)


def test_an_account_is_the_ratio_place_by_place(rng):
    """It sums to the ratio; deviations are those of the counts, their errors without the theory."""
    places, thickness = places_of(rng), THICKNESS[7]
    of = jax.jit(lambda p, t: account(p, t, SEMI_ANGLE, BEAM, CONFIG))(places, thickness)
    of = jax.tree.map(np.asarray, of)
    whole = np.asarray(ratios(places, np.zeros((1, 2), np.float32), THICKNESS))[0, 7]
    np.testing.assert_allclose(of.log_ratio.sum(), whole, rtol=1e-4, atol=1e-3)
    places = jax.tree.map(np.asarray, places)
    at = places.reflections
    share = two_beam(at.s, at.inverse_extinction, at.q, thickness, SEMI_ANGLE)
    expected, excess = BEAM * np.asarray(share), np.asarray(places.excess)
    np.testing.assert_allclose(of.expected, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(of.error, np.sqrt(np.maximum(excess, 0) + 60), rtol=1e-3)
    sigma = np.sqrt(places.variance + (CONFIG.scatter * expected) ** 2)
    np.testing.assert_allclose(of.deviation, (excess - expected) / sigma, rtol=1e-3, atol=1e-3)


def test_what_is_not_seen_is_no_evidence(shine, judge, detector):
    """Masked places, and those beyond the reach, weigh nothing; without any evidence is none."""
    orientation = jnp.asarray(random_matrices(np.random.default_rng(3), 1)[0], jnp.float32)
    light = shine(orientation, 120.0, jax.random.key(0))
    dark = detector._replace(seen=jnp.zeros_like(detector.seen))
    places, _, evidence = judge(orientation, light, dark)
    np.testing.assert_array_equal(places.weight, 0)
    assert float(evidence) == pytest.approx(0.0, abs=1e-4)
    half = detector._replace(seen=detector.seen.at[:, : SIDE // 2].set(False))
    places, *_ = judge(orientation, light, half)
    there = np.asarray(places.weight) > 0
    assert (np.asarray(places.reflections.y)[there] > 0).all() and there.any()
    assert (np.asarray(places.reflections.q)[there] < REACH).all()


def test_truth_is_likelier_than_its_half_turn_and_than_nothing(
    shine_many, judge_many, detector, rng
):
    """Of 24 patterns; on background alone no candidate gains, as a rule."""
    truth = random_matrices(rng, N_PATTERNS)
    lights = shine_many(truth, rng)
    evidence = np.asarray(judge_many(truth, lights, detector)[2])
    turned = np.asarray(judge_many(truth @ np.float32(HALF_TURN_ABOUT_BEAM), lights, detector)[2])
    assert (evidence > turned).sum() >= 22
    assert (evidence > 5).sum() >= 22
    background = np.broadcast_to(np.asarray(encoded(BASE)), lights.sums.shape)
    nothing = np.asarray(judge_many(truth, lights._replace(sums=background), detector)[2])
    assert (nothing < 1).sum() >= 22


def test_climb_returns_to_the_truth(shine_many, judge_many, detector, rng):
    truth = random_matrices(rng, N_PATTERNS)
    lights = shine_many(truth, rng)
    angle = rng.uniform(0, 2 * np.pi, N_PATTERNS)
    start = np.deg2rad(0.6) * np.stack([np.cos(angle), np.sin(angle)], -1)
    moved = np.stack(
        [
            r @ turn_deg(np.rad2deg(t))
            for r, t in zip(truth, np.pad(start, ((0, 0), (0, 1))), strict=True)
        ]
    )
    tilt = np.asarray(judge_many(moved, lights, detector)[1].tilt)
    left = np.rad2deg(np.linalg.norm(tilt + start, axis=1))
    assert np.median(left) < 0.25


def test_turns_of_the_crystal_change_nothing(shine, judge, detector, cu, rng):
    """An operation of copper's symmetry gives the same places in another order."""
    truth = random_matrices(rng, 1)[0].astype(np.float32)
    light = shine(truth, 100.0, jax.random.key(2))
    one = judge(truth, light, detector)[2]
    other = judge(cu[2][7] @ truth, light, detector)[2]
    assert float(one) == pytest.approx(float(other), abs=0.05)


def test_explained_light(shine, judge, detector, prepared):
    """All of a pattern's own light, and next to none of another's."""
    truth = jnp.asarray(random_matrices(np.random.default_rng(5), 2), jnp.float32)
    light = shine(truth[0], THICKNESS[6], jax.random.key(3))
    explained = jax.jit(lambda *x: explained_light(*x[:2], THICKNESS, SEMI_ANGLE, x[2], BEAM))
    share = []
    for orientation in truth:
        places, at, _ = judge(orientation, light, detector)
        share.append(explained(places, at, prepared(truth[0])))
    assert 0.7 < share[0] <= 1.0
    assert 0.0 <= share[1] < 0.5


@pytest.fixture(scope="module")
def prepared(observe):
    """The listed disks of a pattern."""
    return lambda orientation: observe(orientation, float(THICKNESS[6]))


def test_thicknesses_are_equally_likely():
    ratio = np.log(np.array([[1.0, 2.0, 6.0]], np.float32))
    assert float(jax.jit(over_thickness)(ratio)[0]) == pytest.approx(np.log(3.0), rel=1e-6)


def test_only_the_likeliest_reflections_are_looked_at(copper_forward, rng):
    """Those within the reach, by the intensity that two-beam theory expects."""
    orientation = jnp.asarray(random_matrices(rng, 1)[0], jnp.float32)
    some = replace(CONFIG, n_reflections=8), replace(CONFIG, n_reflections=10**6)
    few, all_ = (
        jax.tree.map(np.asarray, reflections_of(orientation, copper_forward, 1.2, config=c))
        for c in some
    )
    expected = jax.jit(expected_intensity)
    value = lambda r: np.asarray(expected(r.s, r.inverse_extinction, 0.003))  # noqa: E731
    assert len(few.x) == 8 and (few.q <= 1.2).all()
    near = np.sort(value(all_)[all_.q <= 1.2])[::-1]
    np.testing.assert_allclose(value(few), near[:8], rtol=1e-5)


def test_a_half_turn_is_that_of_the_crystal(copper_forward, rng):
    """The same reflections as those of the turned orientation, in the same order."""
    orientation = random_matrices(rng, 1)[0]
    turned = orientation @ np.float32(HALF_TURN_ABOUT_BEAM)
    of = [reflections_of(r, copper_forward) for r in (orientation, turned)]
    for one, other in zip(of[0].turned_about_beam(), of[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_overlapping_disks_share_their_light(copper_forward, rng):
    """Apart a disk's light is its own; wider disks take of each other's."""
    orientation = jnp.asarray(random_matrices(rng, 1)[0], jnp.float32)
    share = [
        np.asarray(reflections_of(orientation, copper_forward, disk=d).share)
        for d in (1e-3, 0.076, 0.3)
    ]
    np.testing.assert_allclose(share[0], 1.0, rtol=1e-5)
    assert (share[2] <= share[1] + 1e-6).all() and share[2].mean() < 0.8
