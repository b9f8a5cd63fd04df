# SPDX-License-Identifier: GPL-3.0-or-later
"""The direct beam's place over a scan whose drift is known."""

import numpy as np
import pytest

from jaxstem.detection.origin import smooth_origin
from jaxstem.errors import InputError


def test_the_origin_is_smoothed_but_not_straightened(rng):
    """A wavy drift comes back; noise shrinks; wild values and gaps do no harm."""
    y, x = np.mgrid[:20, :24]
    drift = np.stack([0.5 * np.sin(x / 6) + 60, 0.4 * np.cos(y / 5) + 0.01 * x + 61], -1)
    error = []
    for _ in range(8):  # the width that is chosen hangs on the noise: now and then it is narrow
        measured = drift + rng.normal(0, 0.03, drift.shape)
        measured[rng.random((20, 24)) < 0.05] += 3.0
        measured[rng.random((20, 24)) < 0.05] = np.nan
        measured[5:9, 5:9] = np.nan
        error.append(np.abs(smooth_origin(measured) - drift))
    assert np.median(error) < 0.0195 and np.max(error) < 0.25
    error = []
    for _ in range(20):
        constant = np.broadcast_to([60.0, 61.0], (4, 3, 2)) + rng.normal(0, 0.05, (4, 3, 2))
        error.append(np.abs(smooth_origin(constant) - [60, 61]))
    # of the noise alone the median is 0.034, and one run in a thousand exceeds four deviations
    assert np.median(error) < 0.024 and np.max(error) < 0.2
    np.testing.assert_allclose(smooth_origin(constant[:1, :1]), constant[:1, :1], atol=1e-6)
    with pytest.raises(InputError, match="No direct beam"):
        smooth_origin(np.full((2, 2, 2), np.nan))


def test_a_beam_that_jumps_is_where_it_was_seen(rng):
    """Noise of the scan coils in the centre: no position says where the next one's beam is."""
    jumping = np.array([60.0, 61.0]) + rng.normal(0, 0.8, (12, 15, 2))
    measured = jumping + rng.normal(0, 0.02, jumping.shape)
    assert np.median(np.abs(smooth_origin(measured, 0.02) - jumping)) < 0.03
    # noise of that size is smoothed, if it is known to be noise
    steady = np.array([60.0, 61.0]) + rng.normal(0, 0.2, jumping.shape)
    assert np.median(np.abs(smooth_origin(steady, 0.3) - [60, 61])) < 0.1
