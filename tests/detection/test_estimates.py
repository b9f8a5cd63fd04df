# SPDX-License-Identifier: GPL-3.0-or-later
"""Thresholds of significance."""

import numpy as np

from jaxstem.detection.estimates import false_alarm_threshold


def test_thresholds_rise_with_what_they_allow():
    """Fewer false disks, larger detectors and smaller disks (more places to err) ask for more."""
    kernels = {}
    for radius in (2, 4):
        d = np.minimum(np.arange(64), 64 - np.arange(64))
        kernels[radius] = (np.hypot(d[:, None], d) < radius + 0.3).astype(float)
    level = lambda rate, radius, n: false_alarm_threshold(rate, kernels[radius], n)  # noqa: E731
    assert 3 < level(0.1, 2, 1e4) < level(0.01, 2, 1e4) < level(0.001, 2, 1e4) < 6
    assert level(0.01, 4, 1e4) < level(0.01, 2, 1e4) < level(0.01, 2, 1e5)
