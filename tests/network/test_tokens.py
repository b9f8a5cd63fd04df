# SPDX-License-Identifier: GPL-3.0-or-later
"""Bins of the published tokens, periodicity in the angle, and the formulas of the features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.diffraction.geometry import Disks
from jaxstem.network import tokens


def disks_at(k_r, k_theta_deg, intensity):
    k_r, angle, intensity = np.broadcast_arrays(k_r, np.deg2rad(k_theta_deg), intensity)
    as_float = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return Disks(
        as_float(k_r * np.cos(angle)),
        as_float(k_r * np.sin(angle)),
        as_float(intensity),
        jnp.ones(k_r.shape, bool),
    )


def test_radial_bins():
    edge = tokens.K_R_LIMIT / 256
    k_r = [0.0, 0.5 * edge, 0.999 * edge, 1.001 * edge, 100.5 * edge, 2.989, 2.991, 7.0]
    bins, _, _ = tokens.digitise(disks_at(k_r, 0.0, 1.0))
    np.testing.assert_array_equal(bins, [0, 0, 0, 1, 100, 255, 255, 255])


def test_angular_bins_wrap():
    angle = [0.0, 0.4, 0.6, 1.0, 89.7, 180.0, 359.4, 359.6, -0.4, -0.6, -90.0, 720.7]
    _, bins, _ = tokens.digitise(disks_at(1.0, angle, 1.0))
    np.testing.assert_array_equal(bins, [0, 0, 1, 1, 90, 180, 359, 0, 0, 359, 270, 1])


def test_intensity_bins_are_of_the_share_of_the_strongest():
    share = [1.0, 0.9999, 0.5, 0.001, 0.0001, 0.001 + 0.999 * 1.5 / 64]
    for scale in (1.0, 730.0):
        _, _, bins = tokens.digitise(disks_at(1.0, 0.0, scale * np.array(share)))
        np.testing.assert_array_equal(bins, [63, 63, 31, 0, 0, 1])


def test_masked_intensity_does_not_normalise():
    disks = disks_at(1.0, 0.0, [1.0, 0.5, 90.0])._replace(mask=jnp.array([True, True, False]))
    np.testing.assert_allclose(tokens.relative_intensity(disks), [1.0, 0.5, 0.0])
    empty = disks._replace(mask=jnp.zeros(3, bool))
    np.testing.assert_array_equal(tokens.relative_intensity(empty), np.zeros(3))


def test_polar_turns_from_x_towards_y():
    k_r, angle = tokens.polar(disks_at([0.5, 1.0, 2.0], [10.0, 100.0, 350.0], 1.0))
    np.testing.assert_allclose(k_r, [0.5, 1.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(np.rad2deg(angle), [10.0, 100.0, 350.0], rtol=1e-5)


def test_sinusoidal_is_the_published_formula():
    position = np.array([0.0, 1.0, 77.0, 255.0])
    features = np.asarray(tokens.sinusoidal(jnp.asarray(position, jnp.float32), 8, 5000.0))
    for i in range(4):
        angle = position / 5000.0 ** (2 * i / 8)
        np.testing.assert_allclose(features[:, 2 * i], np.sin(angle), atol=2e-5)
        np.testing.assert_allclose(features[:, 2 * i + 1], np.cos(angle), atol=2e-5)


def test_harmonics_are_fifteen_cosines_and_fifteen_sines():
    angle = np.linspace(0, 6, 7)
    features = np.asarray(tokens.harmonics(jnp.asarray(angle, jnp.float32)))
    assert features.shape == (7, 30)
    order = np.arange(1, 16)
    np.testing.assert_allclose(features[:, :15], np.cos(angle[:, None] * order), atol=2e-5)
    np.testing.assert_allclose(features[:, 15:], np.sin(angle[:, None] * order), atol=2e-5)


@settings(max_examples=50, deadline=None)
@given(angle=st.floats(-7.0, 7.0))
def test_harmonics_are_periodic(angle):
    angle = np.float32(angle)
    here, there = (tokens.harmonics(jnp.asarray(a)) for a in (angle, angle + np.float32(2 * np.pi)))
    np.testing.assert_allclose(here, there, atol=5e-5)


@pytest.mark.parametrize("seam", [0.0, 90.0, 180.0, 360.0])
def test_continuous_features_do_not_jump(seam):
    """Across 0 = 360° the features move as little as elsewhere."""
    step = 1e-3
    disks = disks_at(0.8, [seam - step, seam + step, seam + 10.0], 1.0)
    features = np.asarray(tokens.continuous_features(disks, 1.5))
    assert np.abs(features[0] - features[1]).max() < 15 * np.deg2rad(2 * step) + 1e-5
    assert np.abs(features[0] - features[2]).max() > 0.1


def test_neighbouring_angular_bins_are_equally_far_apart():
    """The published embedding too: bin 359 lies as near to bin 0 as 0 to 1."""
    _, bins, _ = tokens.digitise(disks_at(1.0, np.arange(360.0), 1.0))
    np.testing.assert_array_equal(bins, np.arange(360))
    features = np.asarray(tokens.harmonics(bins * (2 * jnp.pi / tokens.K_THETA_BINS)))
    distance = np.linalg.norm(features - np.roll(features, -1, axis=0), axis=1)
    np.testing.assert_allclose(distance, distance.mean(), rtol=1e-3)


def test_continuous_features_hold_the_position():
    disks = disks_at([0.3, 0.9], [20.0, 200.0], [1.0, 0.1])
    features = np.asarray(tokens.continuous_features(disks, 1.5))
    weighted = features[:, 12 + 30 : 12 + 60]
    np.testing.assert_allclose(weighted[:, 0] * 1.5, disks.qx, atol=1e-6)
    np.testing.assert_allclose(weighted[:, 15] * 1.5, disks.qy, atol=1e-6)


def test_continuous_features_tell_the_reach_alike_to_all_disks(rng):
    """Of one pattern; that of each pattern of a batch; beyond k_max nothing more can be seen."""
    disks = jax.tree.map(lambda x: jnp.stack([x, x]), disks_at([0.3, 0.9], [20.0, 200.0], 1.0))
    plain = np.asarray(tokens.continuous_features(disks, 1.5))
    reach = jnp.asarray(rng.uniform(0.9, 1.4, 2))
    told = np.asarray(tokens.continuous_features(disks, 1.5, tokens.plain_sight(disks, reach)))
    np.testing.assert_array_equal(told[..., : plain.shape[-1]], plain)
    added = told[..., plain.shape[-1] :]
    np.testing.assert_array_equal(added[:, 0], added[:, 1])
    assert np.abs(added[0] - added[1]).max() > 1e-4
    far, at_end = (
        np.asarray(tokens.continuous_features(disks, 1.5, tokens.plain_sight(disks, r)))
        for r in (7.0, 1.5)
    )
    np.testing.assert_array_equal(far, at_end)


def test_continuous_features_tell_the_exposure_alike_to_all_disks(rng):
    """Whether the beam is known, then how bright the strongest disk is; how faint one may be."""
    disks = jax.tree.map(lambda x: jnp.stack([x, x]), disks_at([0.3, 0.9], [20.0, 200.0], 1.0))
    features = lambda seen: np.asarray(  # noqa: E731
        tokens.continuous_features(disks, 1.5, seen, exposure=True)
    )
    both = jnp.array([-5.0, -4.0])
    seen = tokens.Sight(jnp.full(2, 1.2), both, jnp.array([-2.0, 0.0]))
    told = features(seen)
    np.testing.assert_array_equal(told[:, 0, -19:], told[:, 1, -19:])
    assert (told[0, 0, -1], told[1, 0, -1]) == (1.0, 0.0)
    assert np.abs(told[0, 0, -7:-1]).max() > 0.1 and not told[1, 0, -7:-1].any()
    assert np.abs(told[0, 0, -13:-7] - told[1, 0, -13:-7]).max() > 1e-2
    deepest = features(seen._replace(faintest=both - 20.0))
    np.testing.assert_allclose(deepest[0, 0, -13:-7], deepest[1, 0, -13:-7])


def test_sight_is_what_a_scan_tells():
    disks = disks_at([0.3, 0.9, 1.2], 30.0, [50.0, 5.0, 900.0])
    disks = disks._replace(mask=jnp.array([True, True, False]))
    known = tokens.sight(disks, 1.4, 2.0, 1000.0)
    np.testing.assert_allclose(known, [1.4, np.log(2 / 50), np.log(50 / 1000)], rtol=1e-5)
    assert tokens.sight(disks, 1.4, 2.0, 0.0).brightest == 0
    assert tokens.sight(disks, 1.4, 99.0, 10.0).faintest == 0
    np.testing.assert_allclose(tokens.sight(disks, 1.4, 2.0, 10.0).brightest, -1e-3)
    assert tokens.sight(disks, 1.4, 0.0, 1000.0).faintest == pytest.approx(np.log(1e-4))
    plain = tokens.plain_sight(disks, 1.1)
    np.testing.assert_allclose(plain, [1.1, np.log(5 / 50), 0.0], rtol=1e-5)
    empty = tokens.plain_sight(disks._replace(mask=jnp.zeros(3, bool)), 1.1)
    np.testing.assert_allclose(empty, [1.1, 0.0, 0.0], rtol=1e-6)
