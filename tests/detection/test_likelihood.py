# SPDX-License-Identifier: GPL-3.0-or-later
"""Bragg disks in synthetic patterns: found where they are, weighed without bias, not invented.

The patterns are disks integrated over pixels on a finer grid, a background that falls off with the
radius, and Poisson counts: none of it made by the code under test.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import BEAM, DISK_RADIUS, diffuse, disk_image, match_disks
from scipy import ndimage

from jaxstem.detection.config import DetectConfig
from jaxstem.detection.likelihood import correlate, detect_patterns
from jaxstem.detection.plan import make_plan
from jaxstem.errors import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")

PLAIN = {"structure": False, "min_spacing": 4.0}
"""Disks that may overlap, without slopes across them: one compiled program for two tests."""


def test_all_disks_are_found_and_few_others(crowd):
    _, centres, _, _, found = crowd
    index = match_disks(found, centres)
    assert (index >= 0).mean() > 0.99
    extra = found.mask.sum(1) - 1 - (index >= 0).sum(1)
    assert extra.mean() < 1.0


def test_weights_are_unbiased_within_their_noise(crowd):
    _, centres, weights, _, found = crowd
    index = match_disks(found, centres)
    p, k = np.nonzero(index >= 0)
    counts, sigma = (x[p, index[p, k]] for x in (found.counts, found.sigma))
    truth = weights[p, k]
    # the aperture model knows the disk to about 2 %
    pull = (counts - truth) / np.hypot(sigma, 0.02 * truth)
    assert abs(np.median(pull)) < 0.5
    assert 0.6 < np.quantile(np.abs(pull), 0.683) < 1.5
    assert abs(np.median(counts / truth) - 1) < 0.03


def test_positions_and_the_beam(crowd):
    _, centres, weights, beams, found = crowd
    index = match_disks(found, centres)
    p, k = np.nonzero((index >= 0) & (weights > 2000))
    i = index[p, k]
    error = np.stack([found.row[p, i], found.column[p, i]], -1) - centres[p, k]
    assert np.abs(error.mean(0)).max() < 0.03
    assert np.quantile(np.hypot(*error.T), 0.9) < 0.12
    assert np.abs(found.origin - beams).max() < 0.05


def test_weights_do_not_depend_on_where_in_a_pixel(rng, settings, detect):
    """Twice as sharp a claim without noise: the same disk at 32 places within a pixel."""
    beam = BEAM
    shifts = rng.uniform(-0.5, 0.5, (32, 2))
    centres = np.array([20.0, 44.0]) + shifts
    base = diffuse(beam) + disk_image(beam, 1e5)
    images = np.array([base + disk_image(c, 3000.0) for c in centres])
    # sixteenths of a count: whole numbers as the other tests have, for one compiled program
    found = detect((16 * images).round().astype(np.uint16), replace(settings, gain=16.0))
    index = match_disks(found, centres[:, None])[:, 0]
    assert (index >= 0).all()
    rows = np.arange(32)
    counts = found.counts[rows, index]
    assert counts.std() / counts.mean() < 0.015
    assert abs(counts.mean() / 3000 - 1) < 0.02
    error = np.hypot(
        found.row[rows, index] - centres[:, 0], found.column[rows, index] - centres[:, 1]
    )
    assert error.max() < 0.08


@pytest.mark.slow
def test_a_slope_across_a_disk_does_not_move_it(rng, settings, detect):
    slopes = rng.uniform(-0.3, 0.3, (32, 2))
    centres = np.array([20.0, 44.0]) + rng.uniform(-0.5, 0.5, (32, 2))
    base = diffuse() + disk_image(BEAM, 1e5)
    images = [base + disk_image(c, 5000.0, s) for c, s in zip(centres, slopes, strict=True)]
    patterns = rng.poisson(np.array(images)).astype(np.uint16)
    error = {}
    for structure, config in ((True, settings), (False, replace(settings, **PLAIN))):
        found = detect(patterns, config)
        index = match_disks(found, centres[:, None], 2.0)[:, 0]
        assert (index >= 0).all()
        place = np.stack([x[np.arange(32), index] for x in (found.row, found.column)], -1)
        error[structure] = np.hypot(*(place - centres).T)
        counts = found.counts[np.arange(32), index]
        assert abs(np.median(counts) / 5000 - 1) < 0.04
    assert np.median(error[True]) < 0.5 * np.median(error[False])
    assert np.median(error[True]) < 0.08


@pytest.mark.parametrize("level", [0.3, 8.0])
def test_chance_makes_as_many_disks_as_was_asked(rng, level, settings, detect):
    """Poisson noise on a background alone; the direct beam is the one true disk."""
    asked = 0.5
    expected = level * diffuse() / 3 + disk_image(BEAM, 1e5)
    patterns = rng.poisson(expected, (160, 64, 64)).astype(np.uint16)
    config = replace(settings, false_alarms=asked)
    found = detect(patterns[:32], config)
    plan, layout = make_plan(patterns, config)
    number = [
        np.asarray(
            detect_patterns(jnp.asarray(patterns[i : i + 32]), plan, layout=layout).mask
        ).sum(1)
        - 1
        for i in range(0, 160, 32)
    ]
    assert found.mask.sum(1).mean() < 4 * asked + 1
    assert asked / 3 < np.mean(number) < 2 * asked


def test_sums_over_small_and_wide_apertures(rng):
    """Both ways to sum the counts under an aperture, against a convolution."""
    counts = rng.poisson(5.0, (2, 64, 64)).astype(np.uint16)
    beam = disk_image(BEAM, 1e4)
    for radius, wide in ((DISK_RADIUS, False), (6.0, True)):
        config = DetectConfig(radius=radius, edge=1.2, search=3)
        plan, _ = make_plan(counts + beam.astype(np.uint16), config)
        assert np.iscomplexobj(plan.kernel) == wide
        summed = np.asarray(correlate(jnp.asarray(counts, jnp.float32), plan.kernel))
        line = np.arange(-8, 9)
        weights = np.clip((radius - np.hypot(line[:, None], line)) / 1.2 + 0.5, 0, 1)
        expected = [ndimage.correlate(x.astype(float), weights) for x in counts]
        inner = np.s_[:, 9:-9, 9:-9]
        np.testing.assert_allclose(summed[inner], np.array(expected)[inner], rtol=2e-3)


def test_patterns_without_counts(crowd, settings):
    patterns, *_ = crowd
    plan, layout = make_plan(patterns, settings)
    nothing = patterns.copy()
    nothing[::2] = 0
    found = jax.tree.map(np.asarray, detect_patterns(jnp.asarray(nothing), plan, layout=layout))
    assert not found.mask[::2].any() and np.isnan(found.origin[::2]).all()
    assert found.mask[1::2].sum(1).min() >= 5
    for name in ("row", "column", "counts", "sigma", "significance"):
        assert np.isfinite(getattr(found, name)).all()
    with pytest.raises(InputError, match="no counts"):
        make_plan(np.zeros((4, 64, 64), np.uint16), settings)


@pytest.mark.parametrize("how", ["mask", "zero", "hot", "nan"])
@pytest.mark.slow
def test_dead_pixels_neither_hide_nor_make_disks(crowd, rng, how, settings, detect):
    """One pixel in a hundred is lost; the weights stay right."""
    patterns, centres, weights, *_ = crowd
    lost = rng.random((64, 64)) < 0.01
    lost[28:37, 28:37] = False
    spoilt = patterns.astype(np.float32 if how == "nan" else np.uint16)
    spoilt[:, lost] = {"mask": 9, "zero": 0, "hot": 65535, "nan": np.nan}[how]
    config = replace(settings, mask=~lost if how == "mask" else None)
    found = detect(spoilt, config)
    index = match_disks(found, centres)
    assert (index >= 0).mean() > 0.97
    p, k = np.nonzero(index >= 0)
    ratio = found.counts[p, index[p, k]] / weights[p, k]
    assert abs(np.median(ratio) - 1) < 0.04
    extra = found.mask.sum(1) - 1 - (index >= 0).sum(1)
    assert extra.mean() < 1.0


def test_stored_numbers_that_are_not_electrons(crowd, detect):
    """A detector with a gain of 25 sees the same disks with the same weights."""
    patterns, centres, weights, _, found = crowd
    scaled = detect(25 * patterns.astype(np.uint32))
    for a, b in ((scaled, found),):
        i, j = match_disks(a, centres), match_disks(b, centres)
        both = (i >= 0) & (j >= 0)
        assert both.mean() > 0.97
        p, k = np.nonzero(both)
        ratio = a.counts[p, i[p, k]] / b.counts[p, j[p, k]]
        assert abs(np.median(ratio) - 1) < 0.2


def test_overlapping_disks_share_their_counts(rng, settings, detect):
    """Disks whose images touch: the nearest that a matched filter tells apart."""
    centres = np.array([[20.0, 40.0], [20.0, 45.4]]) + rng.uniform(-0.3, 0.3, (32, 1, 2))
    base = diffuse() + disk_image(BEAM, 1e5)
    images = [base + disk_image(a, 4000.0) + disk_image(b, 6000.0) for a, b in centres]
    patterns = rng.poisson(np.array(images)).astype(np.uint16)
    found = detect(patterns, replace(settings, **PLAIN))
    index = match_disks(found, centres)
    assert (index >= 0).all()
    counts = found.counts[np.arange(32)[:, None], index]
    np.testing.assert_allclose(np.median(counts, 0), [4000, 6000], rtol=0.05)


@pytest.mark.slow
def test_a_hidden_beam_needs_an_origin_and_a_radius(crowd, settings, detect):
    patterns, centres, *_ = crowd
    stopped = patterns.copy()
    stopped[:, 26:38, 26:39] = 0
    mask = np.ones((64, 64), bool)
    mask[26:38, 26:39] = False
    given = {"origin": tuple(BEAM), "mask": mask}
    found = detect(stopped, replace(settings, **given))
    np.testing.assert_allclose(found.origin, np.broadcast_to(BEAM, (32, 2)), rtol=1e-6)
    outside = np.abs(centres - BEAM).max(-1) > 10
    assert (match_disks(found, centres)[outside] >= 0).mean() > 0.97
    with pytest.raises(InputError, match="radius"):
        make_plan(stopped, DetectConfig(**given))
    with pytest.raises(InputError, match="outside"):
        make_plan(stopped, DetectConfig(radius=2.0, origin=(64.0, 5.0)))


@pytest.mark.slow
def test_a_saturated_beam_does_no_harm(crowd, detect):
    """The middle of the direct beam is at the largest number in every pattern."""
    patterns, centres, weights, beams, _ = crowd
    row, column = np.round(BEAM).astype(int)
    spoilt = patterns.copy()
    spoilt[:, row - 1 : row + 2, column - 1 : column + 2] = 65535
    found = detect(spoilt)
    index = match_disks(found, centres)
    assert (index >= 0).mean() > 0.97
    p, k = np.nonzero(index >= 0)
    assert abs(np.median(found.counts[p, index[p, k]] / weights[p, k]) - 1) < 0.05
    assert np.abs(found.origin - beams).max() < 0.5
