# SPDX-License-Identifier: GPL-3.0-or-later
"""Thresholds of significance, and pixels that count."""

import numpy as np
import pytest

from jaxstem.detection.config import DetectConfig
from jaxstem.detection.estimates import false_alarm_threshold
from jaxstem.detection.faults import good_pixels


def test_thresholds_rise_with_what_they_allow():
    """Fewer false disks, larger detectors and smaller disks (more places to err) ask for more."""
    kernels = {}
    for radius in (2, 4):
        d = np.minimum(np.arange(64), 64 - np.arange(64))
        kernels[radius] = (np.hypot(d[:, None], d) < radius + 0.3).astype(float)
    level = lambda rate, radius, n: false_alarm_threshold(rate, kernels[radius], n)  # noqa: E731
    assert 3 < level(0.1, 2, 1e4) < level(0.01, 2, 1e4) < level(0.001, 2, 1e4) < 6
    assert level(0.01, 4, 1e4) < level(0.01, 2, 1e4) < level(0.01, 2, 1e5)


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
