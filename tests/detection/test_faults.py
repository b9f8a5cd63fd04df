# SPDX-License-Identifier: GPL-3.0-or-later
"""Pixels that tell nothing are found, at any dose, and nothing else is taken for them."""

import numpy as np
import pytest
from helpers import BEAM, diffuse, disk_image, patterns_of_disks

from jaxstem.detection.config import DetectConfig
from jaxstem.detection.faults import ceiling, good_pixels

DOSES = [0.02, 0.2, 1.0]
"""Of the patterns' electrons, so many are counted."""


@pytest.fixture(scope="module")
def expected():
    """Patterns with a beam and disks, each with its own."""
    return patterns_of_disks(np.random.default_rng(3), 48)[0]


def away_from_the_beam(rng, n, side, shape=(64, 64)):
    """Corners of squares that touch neither each other nor the beam."""
    found = []
    while len(found) < n:
        new = rng.integers(1, np.array(shape) - side - 1)
        apart = [np.abs(new - old).max() for old in found]
        if np.abs(new + side / 2 - BEAM).max() > 10 and min(apart, default=99) > side + 2:
            found.append(new)
    return found


@pytest.mark.parametrize("dtype", ["u1", "f4"])
@pytest.mark.parametrize("mean", [0.001, 0.02, 0.3, 3.0])
def test_hot_pixels_are_told_from_chance(mean, dtype, rng):
    """However few electrons fall, none of the pixels is taken for a hot one but those that are."""
    counts = rng.poisson(mean, (64, 80, 90))
    rows, columns = 4 * np.stack(np.unravel_index(rng.choice(20 * 22, 5, replace=False), (20, 22)))
    counts[:, rows, columns] += 60
    good = good_pixels(counts.astype(dtype) * (1 if dtype == "u1" else 0.25), DetectConfig())
    expected = np.ones((80, 90), bool)
    expected[rows, columns] = False
    np.testing.assert_array_equal(good, expected)


@pytest.mark.parametrize("dose", DOSES)
def test_nothing_is_masked_where_nothing_is_wrong(expected, dose, rng):
    """Neither the beam nor disks, be they the same in all patterns, nor what few electrons leave
    dark.
    """
    for images in (expected, np.repeat(expected[:1], 48, axis=0)):
        assert good_pixels(rng.poisson(dose * images).astype(np.uint16), DetectConfig()).all()


@pytest.mark.parametrize("side", [2, 3, 4])
@pytest.mark.parametrize("dose", DOSES)
def test_hot_clusters_are_found_and_nothing_else(expected, dose, side, rng):
    """As bright as the beam, brighter or fainter, uneven in themselves."""
    counts = rng.poisson(dose * expected)
    top = counts.mean(0).max()
    right = np.ones((64, 64), bool)
    for row, column in away_from_the_beam(rng, 4, side):
        level = top * np.exp(rng.uniform(np.log(0.3), np.log(8)))
        level = np.maximum(level * rng.uniform(0.5, 1, (side, side)), 30)
        square = np.s_[row : row + side, column : column + side]
        counts[:, *square] = rng.poisson(level, (48, side, side))
        right[square] = False
    np.testing.assert_array_equal(good_pixels(counts.astype(np.uint32), DetectConfig()), right)


@pytest.mark.parametrize("kind", ["cross", "stop", "rows"])
@pytest.mark.parametrize("dose", [0.2, 1.0])
def test_dead_regions_are_found_and_nothing_else(expected, dose, kind, rng):
    counts = rng.poisson(dose * expected).astype(np.uint16)
    dead = np.zeros((64, 64), bool)
    if kind == "cross":
        dead[30:34] = dead[:, 29:33] = True
    elif kind == "stop":
        dead[:37, 26:38] = True
    else:
        dead[[7, 40, 41]] = dead[:, 50] = True
    counts[:, dead] = 0
    np.testing.assert_array_equal(good_pixels(counts, DetectConfig()), ~dead)


def test_gaps_at_the_largest_number_are_no_beam(expected, rng):
    """As some detectors store them; the middle of a beam at that number is used."""
    counts = rng.poisson(expected).astype(np.uint32)
    counts[:, 10:14] = 2**32 - 1
    right = np.ones((64, 64), bool)
    right[10:14] = False
    np.testing.assert_array_equal(good_pixels(counts, DetectConfig()), right)
    assert good_pixels(
        np.minimum(rng.poisson(expected), 255).astype(np.uint8), DetectConfig()
    ).all()


@pytest.mark.parametrize(("most", "dtype"), [(255, "u1"), (4095, "u2"), (1000.5, "f4")])
def test_the_ceiling_of_cut_counts(expected, most, dtype, rng):
    """Where the beam is cut, and only there; few electrons often have the largest number, too."""
    good = np.ones((64, 64), bool)
    counts = rng.poisson(expected)
    assert ceiling(np.minimum(counts, most).astype(dtype), good) == most
    assert np.isinf(ceiling(counts, good))
    for level in (0.001, 0.05, 1.0):
        assert np.isinf(ceiling(rng.poisson(level * diffuse(), (48, 64, 64)), good))
    one = disk_image(BEAM, 1e5)[None] + diffuse()
    assert np.isinf(ceiling(rng.poisson(one), good))
